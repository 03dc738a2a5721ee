"""Blocks, whose input can take the place of their output, and sub-blocks inside them.

`_candidates.py` says which modules are candidates. The proof is here: on a copy, the network runs without the block.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core.batches import all_tensors
from simprune.core.copies import sharing
from simprune.core.example import rows_of
from simprune.core.registry import register
from simprune.core.structures import Block, NotPrunable
from simprune.structures import Refusals, Structure
from simprune.structures._candidates import branches_of, equal, resolve
from simprune.structures.failures import kind_of
from simprune.structures.proof import same_shapes
from simprune.trace.bypass import Bypass, without
from simprune.trace.context import eval_mode, uncached
from simprune.trace.hooks import hooks
from simprune.trace.network import Network
from simprune.trace.training_mode import training_error
from simprune.trace.visits import Visit


@register("structure", "blocks")
class Blocks(Structure):
    """Blocks whose input can take the place of their output, in order of execution.

    A forward pass on a copy proves every bypass.
    """

    absent = "no module adds what it computes to its input, so none can be passed by"

    def find(self, network: Network) -> tuple[list[Block], Refusals]:
        return _prove(network, [Block(name) for name, _ in _resolved(network)])


@register("structure", "sub_blocks")
class SubBlocks(Structure):
    """Sub-blocks (attention, MLP) of blocks, where they are modules of their own, in order of execution.

    A forward pass on a copy proves every bypass.
    """

    absent = "no module adds what its parts compute to its input, so there are no halves of blocks"

    def find(self, network: Network) -> tuple[list[Block], Refusals]:
        sub_blocks: list[Block] = []
        refused: Refusals = []
        for name, inner in _resolved(network):
            try:
                sub_blocks += _halves(network, name, inner)
            except NotPrunable as reason:
                refused.append((name, f"no half of it can go alone: {reason}"))
        proven, unproven = _prove(network, sub_blocks)
        return proven, refused + unproven


def _resolved(network: Network) -> list[tuple[str, list[str]]]:
    """Blocks, and of every block the candidates directly inside it."""
    return resolve(network.model, network.visits, lambda name: bool(_prove(network, [Block(name)])[1]))


def _halves(network: Network, name: str, inner: list[str]) -> list[Block]:
    """The sub-blocks of a block, in order: what it adds to its input, and candidates through which a shortcut runs."""
    chained, reasons = [Block(sub_block, inside=name) for sub_block in inner], []
    if len(inner) > 1:
        return chained
    for until in ("", *inner):  # all that the block adds, or what it adds before its one candidate
        try:
            branches = branches_of(network.model, name, network.visits[name], until)
        except NotPrunable as reason:
            reasons.append(reason)
        else:
            zeros = [Block(b.name, "zero", inside=name, adds=b.adds, gain=b.gain) for b in branches]
            return zeros + (chained if until else [])
    if not chained:
        raise reasons[0]
    return chained


def _prove(network: Network, blocks: list[Block]) -> tuple[list[Block], Refusals]:
    """Blocks without which the network runs, numbered by chain, and the names of the others with the reason.

    Cost: two copies of the network that share its weights, and 2 log2(blocks) forward passes of the example, with two
    more in training mode where the original runs in it, in which every block goes once; more where a block cannot go.
    """
    if not blocks:
        return [], []
    trial = sharing(network.model)
    training = sharing(network.model) if network.trains else None
    uses = Counter(module for _, module in network.model.named_modules(remove_duplicate=False))
    lengths = {block.name: len(torch.as_tensor(network.visits[block.name].output)) for block in blocks}
    rows, differ = rows_of(network.example), len(set(lengths.values())) > 1
    reasons: dict[str, str] = {}
    tried: list[Block] = []
    for block in blocks:
        visit = network.visits[block.name]
        if visit.calls > 1:
            reasons[block.name] = f"it runs {visit.calls} times in one forward pass"
        elif uses[network.model.get_submodule(block.name)] > 1:
            reasons[block.name] = "the same module stands in several places of the network"
        elif differ and lengths[block.name] != rows:
            reasons[block.name] = f"it gets {lengths[block.name]} parts of {rows} inputs, other blocks whole inputs"
        else:
            tried.append(block)
    with eval_mode(trial), uncached(trial), torch.no_grad():
        for number, walk in enumerate(_walks(tried)):
            left = [block for block in walk if block.name not in reasons]
            copies = trial, training if number < 2 else None
            reasons |= _failures(left, partial(_failure, network, *copies))
    provable = [block for block in blocks if block.name not in reasons]
    return _chained(provable, network.visits), [(b.name, reasons[b.name]) for b in blocks if b.name in reasons]


def _walks(blocks: list[Block]) -> list[list[Block]]:
    """Blocks that one forward pass does without: every block goes while any other one stays, which may need it.

    The first two hold all of them.

    >>> [[block.name for block in walk] for walk in _walks([Block("a"), Block("b"), Block("c")])]
    [['a', 'c'], ['b'], ['a', 'b'], ['c']]
    """
    if len(blocks) < 2:
        return [blocks]
    bits = range((len(blocks) - 1).bit_length())
    return [[b for number, b in enumerate(blocks) if number >> bit & 1 == value] for bit in bits for value in (0, 1)]


def _failures(blocks: list[Block], failure: Callable[[list[Block]], str | None]) -> dict[str, str]:
    """The blocks, by name, without which the network cannot do, with the reason; all are tried at once, else halves."""
    reason = failure(blocks) if blocks else None
    if reason is None:
        return {}
    if len(blocks) == 1:
        return {blocks[0].name: reason}
    middle = len(blocks) // 2
    return _failures(blocks[:middle], failure) | _failures(blocks[middle:], failure)


def _failure(network: Network, trial: nn.Module, training: nn.Module | None, blocks: list[Block]) -> str | None:
    """Why the network cannot do without these blocks; None when it can. `trial` is a copy, left as it was.

    It is in evaluation mode, uncached and without gradients. `training` is another copy, for passes in training mode.
    """
    visits = [network.visits[block.name] for block in blocks]
    try:
        for block, visit in zip(blocks, visits, strict=True):
            if _returns_more(visit) and not _same_without_more(network, trial, block.name):
                return "it also makes a tensor that later layers need"
        with _without(trial, blocks, visits):
            after = _outputs(network, trial)
        if training is not None:
            with _without(training, blocks, visits):
                error = training_error(training, network.example)
            if error is not None:
                return f"the network fails without it in training mode ({kind_of(error)} in its forward pass)"
    except Exception as error:  # any failure of a foreign forward pass means the same: not safe to remove
        return f"the network fails without it ({kind_of(error)} in its forward pass)"
    if not same_shapes(network.outputs, after):
        return "the network's output changes its shape without it"
    return None


@contextmanager
def _without(trial: nn.Module, blocks: list[Block], visits: list[Visit]) -> Iterator[None]:
    """Within the block of code, the input of every block, or nothing, stands in for it."""
    with ExitStack() as stack:
        for block, visit in zip(blocks, visits, strict=True):
            stack.enter_context(without(trial, block.name, Bypass(visit.layout(), block.replace == "zero")))
        yield


def _outputs(network: Network, trial: nn.Module) -> dict[str, Tensor]:
    args, kwargs = network.example
    return all_tensors(trial(*args, **kwargs))


def _returns_more(visit: Visit) -> bool:
    """Whether a module returns, besides its first tensor, one that it did not get as an argument."""
    if not isinstance(visit.returned, tuple | list):
        return False
    arguments = {id(value) for value in (*visit.args, *visit.kwargs.values())}
    return any(isinstance(value, Tensor) and id(value) not in arguments for value in visit.returned[1:])


def _same_without_more(network: Network, trial: nn.Module, name: str) -> bool:
    """Whether the network's output stays as it is when a module returns None in place of the tensors that it makes.

    Attention weights beside the stream, as in GPT-J, are such tensors: nothing needs them.
    """
    layout = network.visits[name].layout()
    assert isinstance(layout, tuple)

    def less(_: nn.Module, args: tuple, kwargs: dict, returned: Any) -> Any:
        stays = (value if source is not None else None for source, value in zip(layout, returned, strict=True))
        return type(returned)((returned[0], *[*stays][1:]))

    with hooks(after=[(trial.get_submodule(name), less)]):
        after = _outputs(network, trial)
    same = same_shapes(network.outputs, after)
    return same and all(torch.equal(value, network.outputs[key]) for key, value in after.items())


def _chained(blocks: list[Block], visits: Mapping[str, Visit]) -> list[Block]:
    """The blocks with the numbers of their chains; in a chain every block begins with the output of the one before."""
    chained: list[Block] = []
    end: Tensor | None = None
    chain, layer = -1, ""
    for block in blocks:
        around = visits[block.inside or block.name]
        if block.replace == "zero":
            before = end if block.inside == layer else around.input
            after = None if before is None else before + block.gain * torch.as_tensor(visits[block.adds].output)
        else:
            before, after = visits[block.name].input, visits[block.name].output
        if end is None or before is None or not equal(before, end):
            chain += 1
        chained.append(replace(block, chain=chain))
        end, layer = after, block.inside
    return chained
