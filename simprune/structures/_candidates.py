"""Candidates for blocks: modules through which a shortcut runs, from their input to their output.

Whether a shortcut runs through a module follows from what the module computes, never from its name or class:

- A residual or pre-norm block returns its input when all its parameters are zero.
- A post-norm block, which normalises after the sum as in BERT, returns its input up to a shift and a positive scale at
  every position when all weights are zero but those of normalisations, which are one. This test is weaker. It shows
  that a shortcut runs through the block, and that without the block the next one gets the output of the previous
  normalisation.

Candidates may contain candidates. A stage that only chains blocks is resolved into these blocks. A layer that chains
two unlike sub-blocks, or contains one, is itself a block, and they are its sub-blocks. The modules whose outputs a
layer only adds to its input (attention, MLP) are sub-blocks as well, and are removed by adding nothing.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from simprune.core.batches import copied, first_tensor
from simprune.trace.context import eval_mode, uncached
from simprune.trace.shortcuts import zero_copy
from simprune.trace.visits import Visit


def resolve(model: nn.Module, visits: Mapping[str, Visit]) -> list[tuple[str, list[str]]]:
    """Blocks, and of every block the candidates directly inside it, by name and in order of execution.

    A module that has several names appears under the first.
    """
    with eval_mode(model), uncached(model), torch.no_grad():
        shortcuts = [name for name, visit in visits.items() if _has_shortcut(model.get_submodule(name), visit)]
    names = [name for name in shortcuts if not _adds_a_sibling(visits, name)]

    def descend(name: str) -> Iterator[tuple[str, list[str]]]:
        inner = _outermost([other for other in names if other.startswith(f"{name}.")])
        whole = sum(1 for _ in model.get_submodule(name).parameters())
        parts = sum(1 for other in inner for _ in model.get_submodule(other).parameters())
        if parts == whole and not _is_layer(model, name, inner, names) and _is_chain(visits, name, inner):
            for other in inner:
                yield from descend(other)
        else:
            yield name, inner

    return [block for name in _outermost(names) for block in descend(name)]


def _outermost(names: list[str]) -> list[str]:
    """Those of some modules that are inside no other of them."""
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]


def _has_shortcut(module: nn.Module, visit: Visit) -> bool:
    """Whether a shortcut runs through a composite module, from its input to its output (see the top of this file)."""
    x, y = visit.input, visit.output
    if next(module.children(), None) is None or x is None or y is None:
        return False
    if x.shape != y.shape or x.dtype != y.dtype or not x.is_floating_point() or x.ndim < 2:
        return False
    if not any(parameter.ndim > 1 for parameter in module.parameters()):
        return False
    zero = zero_copy(module)
    output = _rerun(zero, visit)
    if output is None or output.shape != x.shape:
        return False
    size = float(x.abs().max())
    if size > 0 and torch.allclose(output, x, rtol=1e-5, atol=1e-5 * size):
        return True
    for part in zero.modules():
        if "norm" in type(part).__name__.lower():
            for name, parameter in part.named_parameters(recurse=False):
                if name.endswith("weight"):
                    parameter.fill_(1)
    output = _rerun(zero, visit)
    return output is not None and _same_up_to_scale(x, output)


def _adds_a_sibling(visits: Mapping[str, Visit], name: str) -> bool:
    """Whether a module gets the output of a sibling beside the stream, and so is only a part of a sub-block.

    An example is BERT's `output`, which adds the output of `intermediate` to the stream.
    """
    visit, parent = visits[name], name.rpartition(".")[0]
    extra = {id(value) for key, value in [*enumerate(visit.args), *visit.kwargs.items()] if key != visit.stream_key}
    siblings = (visits[other] for other in visits if other != name and other.rpartition(".")[0] == parent)
    return any(isinstance(other.returned, Tensor) and id(other.returned) in extra for other in siblings)


def _same_up_to_scale(x: Tensor, y: Tensor) -> bool:
    """Whether y is x up to a shift and a positive scale at every position."""
    dim = 1 if x.ndim == 4 else -1
    x, y = (value.double() - value.double().mean(dim, keepdim=True) for value in (x, y))
    cosine = torch.cosine_similarity(x, y, dim=dim)
    return bool(x.abs().max() > 0) and bool((cosine > 0.999).all())


def _rerun(module: nn.Module, visit: Visit) -> Tensor | None:
    """The first tensor that the module returns for the arguments of a visit; None when the module fails."""
    args, kwargs = copied(visit.call)
    try:
        return first_tensor(module(*args, **kwargs))
    except Exception:  # a foreign forward pass may raise anything; such a module is no candidate
        return None


def _is_chain(visits: Mapping[str, Visit], name: str, inner: list[str]) -> bool:
    """Whether these modules, one after the other, are all that happens between `name`'s input and output."""
    inputs = [visits[name].input, *(visits[other].input for other in inner[1:]), visits[name].output]
    outputs = [visits[inner[0]].input, *(visits[other].output for other in inner)]
    return all(a is not None and b is not None and equal(a, b) for a, b in zip(inputs, outputs, strict=True))


def _is_layer(model: nn.Module, name: str, inner: list[str], names: list[str]) -> bool:
    """Whether modules that follow each other are sub-blocks of one layer, and not blocks of a stage.

    They are, if no two have parameters of the same names and shapes, and if there are two of them or the network has
    several layers of this class.
    """
    layers = [model.get_submodule(other) for other in inner]
    signatures = {tuple((key, value.shape) for key, value in layer.named_parameters()) for layer in layers}
    kind = type(model.get_submodule(name))
    same_class = sum(type(model.get_submodule(other)) is kind for other in names)
    return len(signatures) == len(inner) > 1 and (len(inner) == 2 or (same_class > 1 and kind is not nn.Sequential))


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether two activations are the same up to rounding."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


def branches_of(model: nn.Module, name: str, visits: Mapping[str, Visit]) -> list[str]:
    """Names of the children whose outputs a block adds to its input, in order of execution.

    There are none if the block does anything else, or has only one such child.
    """
    whole = visits[name]
    assert whole.input is not None
    assert whole.output is not None
    branches = []
    for child, module in model.get_submodule(name).named_children():
        visit = visits.get(f"{name}.{child}")
        if visit is None or visit.output is None or visit.calls > 1 or visit.output.shape != whole.input.shape:
            continue
        if any(parameter.ndim > 1 for parameter in module.parameters()):
            branches.append(f"{name}.{child}")
    branches.sort(key=list(visits).index)
    total = whole.input + sum(torch.as_tensor(visits[branch].output) for branch in branches)
    if len(branches) < 2 or not equal(total, whole.output):
        return []
    composite = [branch for branch in branches if next(model.get_submodule(branch).children(), None) is not None]
    return [name for name in composite if (x := visits[name].input) is not None and x.shape == whole.input.shape]
