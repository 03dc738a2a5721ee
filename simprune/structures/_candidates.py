"""Candidates for blocks: modules through which a shortcut runs, from their input to their output.

Whether a shortcut runs through a module follows from what the module computes, never from its name or class
(`simprune.trace.carried`). Without a post-norm block, the next one gets the output of the previous normalisation.

Candidates may contain candidates. A stage that only chains blocks is resolved into these blocks. So is one that does
more, such as an encoder that adds positions first: where its blocks are all alike, or where some are and the network
fails without it. A layer that chains two unlike sub-blocks, or contains one, is itself a block, and they are its
sub-blocks. The modules whose outputs a layer only adds to its input (attention, MLP) are sub-blocks as well, and are
removed by adding nothing. They may be normalised or scaled before the sum.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from simprune.core.batches import copied, first_tensor
from simprune.core.names import around
from simprune.core.structures import NotPrunable
from simprune.structures.failures import kind_of
from simprune.trace.carried import carried, settle
from simprune.trace.context import eval_mode, uncached
from simprune.trace.precision import HALF, in_half, in_single, tolerance, widened
from simprune.trace.visits import Visit, visit


def resolve(
    model: nn.Module, visits: Mapping[str, Visit], needed: Callable[[str], bool]
) -> list[tuple[str, list[str]]]:
    """Blocks, and of every block the candidates directly inside it, by name and in order of execution.

    A module that has several names appears under the first. `needed` says of a candidate whether the network fails
    without it; it is asked of those that hold some like blocks and do more than chain them.
    """
    with eval_mode(model), uncached(model), torch.no_grad():
        shortcuts = [name for name, visit in visits.items() if carried(model.get_submodule(name), visit) is not None]
    made = _made_by_children(visits)
    names = [name for name in shortcuts if not _adds_a_sibling(model, visits, name, made)]

    def descend(name: str) -> Iterator[tuple[str, list[str]]]:
        inner = _outermost([other for other in names if other.startswith(f"{name}.")])
        whole = sum(1 for _ in model.get_submodule(name).parameters())
        parts = sum(1 for other in inner for _ in model.get_submodule(other).parameters())
        chain = parts == whole and not _is_layer(model, name, inner, names) and _is_chain(visits, name, inner)
        kinds = len(_signatures(model, inner))
        # a layer may have two like halves
        alike = kinds == 1 and (len(inner) > 2 or _of_class(model, name, names) == 1)
        if chain or (kinds < len(inner) and (alike or needed(name))):
            for other in inner:
                yield from descend(other)
        else:
            yield name, inner

    return [block for name in _outermost(names) for block in descend(name)]


def _outermost(names: list[str]) -> list[str]:
    """Those of some modules that are inside no other of them."""
    known = set(names)
    return [name for name in names if known.isdisjoint(around(name))]


def _made_by_children(visits: Mapping[str, Visit]) -> dict[tuple[str, int], list[str]]:
    """The modules inside of a module that return a tensor, by the module's name and the tensor's identity."""
    made: dict[tuple[str, int], list[str]] = {}
    for name, seen in visits.items():
        if isinstance(seen.returned, Tensor):
            made.setdefault((name.rpartition(".")[0], id(seen.returned)), []).append(name)
    return made


def _adds_a_sibling(
    model: nn.Module, visits: Mapping[str, Visit], name: str, made: Mapping[tuple[str, int], Sequence[str]]
) -> bool:
    """Whether a module gets what a sibling with weights made beside the stream, and so is only a part of a sub-block.

    An example is BERT's `output`, which adds the output of `intermediate` to the stream. A sibling that only normalises
    the stream, as in BLOOM, does not count.
    """
    visit, parent = visits[name], name.rpartition(".")[0]
    extra = {id(value) for key, value in [*enumerate(visit.args), *visit.kwargs.items()] if key != visit.stream_key}
    siblings = (other for value in extra for other in made.get((parent, value), ()) if other != name)
    return any(has_matrix(model.get_submodule(other)) for other in siblings)


def has_matrix(module: nn.Module) -> bool:
    """Whether a module multiplies with weights, and does not only normalise."""
    return any(parameter.ndim > 1 for parameter in module.parameters())


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
    several = _of_class(model, name, names) > 1 and type(model.get_submodule(name)) is not nn.Sequential
    return len(_signatures(model, inner)) == len(inner) > 1 and (len(inner) == 2 or several)


def _of_class(model: nn.Module, name: str, names: list[str]) -> int:
    """How many of some modules have the class of one."""
    kind = type(model.get_submodule(name))
    return sum(type(model.get_submodule(other)) is kind for other in names)


def _signatures(model: nn.Module, modules: list[str]) -> set[tuple]:
    """The names and shapes of the parameters of modules; like modules have the same."""
    layers = (model.get_submodule(name) for name in modules)
    return {tuple((key, value.shape) for key, value in layer.named_parameters()) for layer in layers}


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether two activations are the same up to rounding."""
    if a.shape != b.shape:
        return False
    rounding = tolerance(0, a, b)
    if {a.dtype, b.dtype}.intersection(HALF):  # sums are rounded, so entries near zero may differ by much of themselves
        return float((a.float() - b.float()).norm()) <= 2 * rounding * float(b.float().norm())
    return torch.allclose(a, b.to(a), rtol=1e-4, atol=1e-5 * float(b.abs().max()))


@dataclass(frozen=True)
class Branch:
    """A child of a block whose output is added to the block's input.

    Args:
        name: of the child.
        adds: name of the module whose output is added: the child, or what normalises or scales its output.
        gain: by which this output is multiplied first.
    """

    name: str
    adds: str
    gain: float


def branches_of(model: nn.Module, name: str, visit_of_block: Visit, until: str = "") -> list[Branch]:
    """The children whose outputs a block adds to its input, in order of execution.

    Args:
        model: the network.
        name: of the block.
        visit_of_block: its arguments and output. They run through a copy in float32.
        until: a sub-block through which a shortcut of its own runs, at the end of the block: only what is added before
            it counts. By default there is none.

    Raises:
        NotPrunable: with the reason, when there are none: if the block does anything else, or has only one such child.
    """
    if visit_of_block.stream_key is None:
        raise NotPrunable("none of its inputs has the shape of its output")
    block = in_single(model.get_submodule(name)) if in_half(model.get_submodule(name)) else model.get_submodule(name)
    visits, (x, y) = _inside(block, visit_of_block)
    children = {child: block.get_submodule(child) for child in visits if "." not in child}
    if until:
        end = until.removeprefix(f"{name}.")
        y = torch.as_tensor(visits[end].input)
        children = {child: children[child] for child in itertools.takewhile(lambda child: child != end, children)}
    with eval_mode(block), torch.no_grad():
        sums = _summands(children, visits, x)
    total = sum((torch.as_tensor(visits[adds].output).view_as(x) for adds in sums.values()), torch.zeros_like(x))
    if len(sums) < (1 if until else 2) or not total.any():
        raise NotPrunable("it does not add what two of its modules give to its input")
    added = y - x
    gain = float((added * total).sum() / total.square().sum())
    gain = 1.0 if abs(gain - 1) < 1e-4 else gain
    if not equal(x + gain * total, y):
        raise NotPrunable("what it adds to its input is not the sum of what its modules give")
    composite = [child for child in sums if next(children[child].children(), None) is not None]
    halves = [child for child in composite if (seen := visits[child].input) is not None and seen.shape == x.shape]
    if not halves:
        raise NotPrunable("what it adds to its input does not come from whole modules, such as attention or an MLP")
    return [Branch(f"{name}.{child}", f"{name}.{sums[child]}", gain) for child in halves]


def _inside(block: nn.Module, visit_of_block: Visit) -> tuple[dict[str, Visit], tuple[Tensor, Tensor]]:
    """Visits inside a block, and its input and output, in float32."""
    args, kwargs = widened(copied(visit_of_block.call))
    try:
        with eval_mode(block), uncached(block), torch.no_grad():
            output = first_tensor(block(*copied(args), **copied(kwargs)))
        visits = visit(block, (args, kwargs))
        settle(block, visits)
    except Exception as error:  # a foreign forward pass may raise anything
        raise NotPrunable(f"it does not run by itself in float32 ({kind_of(error)})") from None
    assert output is not None
    return visits, ({**dict(enumerate(args)), **kwargs}[visit_of_block.stream_key], output)


def _summands(children: Mapping[str, nn.Module], visits: Mapping[str, Visit], x: Tensor) -> dict[str, str]:
    """Children with weights whose outputs have the stream's shape -> the last module that normalises or scales them.

    Such a module gets exactly what the child gave, and gives nothing for nothing.
    """
    sums: dict[str, str] = {}
    for child, module in children.items():
        seen = visits[child]
        if seen.output is None or seen.calls > 1 or not _flat_alike(seen.output, x):
            continue
        if has_matrix(module):
            sums[child] = child
            continue
        source = next((key for key, last in sums.items() if _same(visits[last].output, seen.input)), None)
        if source is not None and not module(torch.zeros_like(x)).any():
            sums[source] = child
    return sums


def _flat_alike(value: Tensor, x: Tensor) -> bool:
    """Whether a value has the stream's shape, or, as in OPT, the stream's positions one after another."""
    return value.shape == x.shape or (value.numel() == x.numel() and value.shape[-1] == x.shape[-1])


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and torch.equal(a, b)
