"""Blocks: modules whose input can stand in for their output, and the halves inside them.

What a module is follows from what it computes, never from its name or class:

- residual or pre-norm: with all its parameters zero it returns its input;
- post-norm (normalised after the sum, as in BERT): with all weights zero but those of normalisations, which are one,
  it returns its input up to a shift and a positive scale at every position. This is weaker: it shows that a shortcut
  runs through, and that without the block the next one gets what the previous normalisation left.

A candidate inside a candidate is resolved: a stage that merely chains its blocks is its blocks; a layer that chains
two unlike halves, or holds one, is a layer, and they are its halves. Halves are also the modules whose outputs a
layer just adds to its input (attention, MLP): those are removed by adding nothing.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from simprune.core.batches import copied, first_tensor
from simprune.core.cost import Example
from simprune.core.example import rows_of
from simprune.core.registry import register
from simprune.core.structures import Block
from simprune.structures._structure import Refusals, Structure
from simprune.trace.bypass import Bypass, without
from simprune.trace.context import eval_mode, uncached
from simprune.trace.network import Network
from simprune.trace.shortcuts import zero_copy
from simprune.trace.visits import Visit


@register("structure", "blocks")
class Blocks(Structure):
    """Blocks that can be bypassed, in order of execution; every bypass is proven by a forward pass on a copy."""

    def find(self, network: Network) -> tuple[list[Block], Refusals]:
        return _proven(network, [Block(name) for name, _ in _resolve(network.model, network.visits)])


@register("structure", "sub_blocks")
class SubBlocks(Structure):
    """Halves of blocks (attention, MLP), where they are modules."""

    def find(self, network: Network) -> tuple[list[Block], Refusals]:
        halves = []
        for name, inner in _resolve(network.model, network.visits):
            added = [] if len(inner) > 1 else _added(network.model, name, network.visits)
            halves += [Block(half, "zero", inside=name) for half in added] or [
                Block(half, inside=name) for half in inner
            ]
        return _proven(network, halves)


# ---- which modules are candidates ----


def _resolve(model: nn.Module, visits: Mapping[str, Visit]) -> list[tuple[str, list[str]]]:
    """(block, candidates right inside it), in order of execution, the same module's other names left out."""
    with eval_mode(model), uncached(model), torch.no_grad():
        names = [
            name
            for name, seen in visits.items()
            if _carries(model.get_submodule(name), seen) and not _is_an_end(visits, name)
        ]

    def inside(name: str) -> list[str]:
        below = [other for other in names if other.startswith(f"{name}.")]
        return [a for a in below if not any(a.startswith(f"{b}.") for b in below)]

    def descend(name: str) -> Iterator[tuple[str, list[str]]]:
        inner = inside(name)
        whole = sum(1 for _ in model.get_submodule(name).parameters())
        parts = sum(1 for other in inner for _ in model.get_submodule(other).parameters())
        if parts == whole and not _is_layer(model, name, inner, names) and _is_chain(visits, name, inner):
            for other in inner:
                yield from descend(other)
        else:
            yield name, inner

    top = [name for name in names if not any(name.startswith(f"{other}.") for other in names)]
    return [found for name in top for found in descend(name)]


def _carries(module: nn.Module, seen: Visit) -> bool:
    """Whether a shortcut runs through a composite module, from its input to its output (see the top of this file)."""
    x, y = seen.input, seen.output
    if next(module.children(), None) is None or x is None or y is None:
        return False
    if x.shape != y.shape or x.dtype != y.dtype or not x.is_floating_point() or x.ndim < 2:
        return False
    if not any(parameter.ndim > 1 for parameter in module.parameters()):
        return False
    silent = zero_copy(module)
    passed = _rerun(silent, seen)
    if passed is None or passed.shape != x.shape:
        return False
    size = float(x.abs().max())
    if size > 0 and torch.allclose(passed, x, rtol=1e-5, atol=1e-5 * size):
        return True
    for part in silent.modules():
        if "norm" in type(part).__name__.lower():
            for name, parameter in part.named_parameters(recurse=False):
                if name.endswith("weight"):
                    parameter.fill_(1)
    passed = _rerun(silent, seen)
    return passed is not None and _same_up_to_scale(x, passed)


def _is_an_end(visits: Mapping[str, Visit], name: str) -> bool:
    """Whether a module only adds what a sibling made (BERT's `output` behind `intermediate`): half of a half."""
    seen, parent = visits[name], name.rpartition(".")[0]
    extra = {id(value) for key, value in [*enumerate(seen.args), *seen.kwargs.items()] if key != seen.stream_key}
    siblings = (other for place, other in visits.items() if place != name and place.rpartition(".")[0] == parent)
    return any(isinstance(other.returned, Tensor) and id(other.returned) in extra for other in siblings)


def _same_up_to_scale(x: Tensor, y: Tensor) -> bool:
    dim = 1 if x.ndim == 4 else -1
    x, y = (value.double() - value.double().mean(dim, keepdim=True) for value in (x, y))
    cosine = torch.cosine_similarity(x, y, dim=dim)
    return bool(x.abs().max() > 0) and bool((cosine > 0.999).all())


def _rerun(module: nn.Module, seen: Visit) -> Tensor | None:
    """The module's main output on what it got; None when it does not run on its own."""
    args, kwargs = copied(seen.call)
    try:
        return first_tensor(module(*args, **kwargs))
    except Exception:  # a foreign forward pass may raise anything; such a module is no candidate
        return None


def _is_chain(visits: Mapping[str, Visit], name: str, inner: list[str]) -> bool:
    """Whether these modules, one after the other, are all that happens between `name`'s input and output."""
    values = [visits[name].input, *(visits[other].input for other in inner[1:]), visits[name].output]
    made = [visits[inner[0]].input, *(visits[other].output for other in inner)]
    return all(a is not None and b is not None and _equal(a, b) for a, b in zip(values, made, strict=True))


def _is_layer(model: nn.Module, name: str, inner: list[str], names: list[str]) -> bool:
    """Whether parts that follow each other are halves of one layer: all unlike, and two, or the layer has likes."""
    parts = {tuple(_signature(model, other)) for other in inner}
    kind = type(model.get_submodule(name))
    likes = sum(type(model.get_submodule(other)) is kind for other in names)
    return len(parts) == len(inner) > 1 and (len(inner) == 2 or (likes > 1 and kind is not nn.Sequential))


def _signature(model: nn.Module, name: str) -> list[tuple[str, torch.Size]]:
    return [(key, parameter.shape) for key, parameter in model.get_submodule(name).named_parameters()]


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


def _added(model: nn.Module, name: str, visits: Mapping[str, Visit]) -> list[str]:
    """Children whose outputs a block adds to its input and does nothing else with, if that is all that it does."""
    whole = visits[name]
    assert whole.input is not None
    assert whole.output is not None
    branches = []
    for child, module in model.get_submodule(name).named_children():
        seen = visits.get(f"{name}.{child}")
        if seen is None or seen.output is None or seen.calls > 1 or seen.output.shape != whole.input.shape:
            continue
        if any(parameter.ndim > 1 for parameter in module.parameters()):
            branches.append(f"{name}.{child}")
    branches.sort(key=list(visits).index)
    total = whole.input + sum(torch.as_tensor(visits[branch].output) for branch in branches)
    if len(branches) < 2 or not _equal(total, whole.output):
        return []

    def whole_branch(name: str) -> bool:
        given = visits[name].input
        composite = next(model.get_submodule(name).children(), None) is not None
        return composite and given is not None and given.shape == torch.as_tensor(whole.input).shape

    return [branch for branch in branches if whole_branch(branch)]


# ---- proof ----


def _proven(network: Network, blocks: list[Block]) -> tuple[list[Block], Refusals]:
    """Blocks whose removal works, numbered by chain, and the others with the reason."""
    model, example, visits = network.model, network.example, network.visits
    found: list[Block] = []
    refused: Refusals = []
    if not blocks:
        return found, refused
    trial, expected = copy.deepcopy(model), network.output
    names: dict[nn.Module, int] = {}
    for _, module in model.named_modules(remove_duplicate=False):
        names[module] = names.get(module, 0) + 1
    lengths = {block.name: len(torch.as_tensor(visits[block.name].output)) for block in blocks}
    for block in blocks:
        seen, shared = visits[block.name], names[model.get_submodule(block.name)] > 1
        if seen.calls > 1:
            reason = f"it runs {seen.calls} times in one forward pass"
        elif shared:
            reason = "the same module stands in several places of the network"
        elif len({*lengths.values()}) > 1 and lengths[block.name] != rows_of(example):
            reason = f"it gets {lengths[block.name]} parts of {rows_of(example)} inputs, other blocks whole inputs"
        else:
            reason = _failure(trial, example, block, seen, expected)
        if reason is None:
            found.append(block)
        else:
            refused.append((block.name, reason))
    return _chained(found, visits), refused


def _chained(blocks: list[Block], visits: Mapping[str, Visit]) -> list[Block]:
    chained: list[Block] = []
    end: Tensor | None = None
    chain, layer = -1, ""
    for block in blocks:
        around = visits[block.inside or block.name]
        if block.replace == "zero":
            before = end if block.inside == layer else around.input
            after = None if before is None else before + torch.as_tensor(visits[block.name].output)
        else:
            before, after = visits[block.name].input, visits[block.name].output
        if end is None or before is None or not _equal(before, end):
            chain += 1
        chained.append(replace(block, chain=chain))
        end, layer = after, block.inside
    return chained


def _makes_more(seen: Visit) -> bool:
    """Whether a module returns, besides its main tensor, one that it did not get as an argument."""
    if not isinstance(seen.returned, tuple | list):
        return False
    handed = {id(value) for value in (*seen.args, *seen.kwargs.values())}
    return any(isinstance(value, Tensor) and id(value) not in handed for value in seen.returned[1:])


@contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    with uncached(model), torch.no_grad():
        yield


def _failure(trial: nn.Module, example: Example, block: Block, seen: Visit, expected: Tensor | None) -> str | None:
    args, kwargs = example
    if block.replace == "identity" and _makes_more(seen):
        return "it also makes a tensor that later layers may need"
    try:
        stand_in = Bypass(seen.layout(), block.replace == "zero")
        with without(trial, block.name, stand_in), eval_mode(trial), _quiet(trial):
            after = first_tensor(trial(*args, **kwargs))
    except Exception as error:  # any failure of a foreign forward pass means the same: not safe to remove
        return f"the network fails without it ({(str(error).splitlines() or [type(error).__name__])[0][:120]})"
    if expected is None or after is None or expected.shape != after.shape:
        return "the network's output changes its shape without it"
    return None
