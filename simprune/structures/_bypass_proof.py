"""The proof that blocks can be bypassed: on a copy, the network runs without them, and they are numbered by chain."""

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from simprune.core.batches import first_tensor
from simprune.core.cost import Example
from simprune.core.example import rows_of
from simprune.core.structures import Block
from simprune.structures._candidates import equal
from simprune.structures._structure import Refusals
from simprune.trace.bypass import Bypass, without
from simprune.trace.context import eval_mode, uncached
from simprune.trace.network import Network
from simprune.trace.visits import Visit


def prove_bypasses(network: Network, blocks: list[Block]) -> tuple[list[Block], Refusals]:
    """Blocks without which the network runs, numbered by chain, and the names of the others with the reason.

    Cost: one copy of the network, and one forward pass of the example per block.
    """
    model, example, visits = network.model, network.example, network.visits
    proven: list[Block] = []
    refused: Refusals = []
    if not blocks:
        return proven, refused
    trial, expected = copy.deepcopy(model), network.output
    names: dict[nn.Module, int] = {}
    for _, module in model.named_modules(remove_duplicate=False):
        names[module] = names.get(module, 0) + 1
    lengths = {block.name: len(torch.as_tensor(visits[block.name].output)) for block in blocks}
    for block in blocks:
        visit = visits[block.name]
        if visit.calls > 1:
            reason = f"it runs {visit.calls} times in one forward pass"
        elif names[model.get_submodule(block.name)] > 1:
            reason = "the same module stands in several places of the network"
        elif len({*lengths.values()}) > 1 and lengths[block.name] != rows_of(example):
            reason = f"it gets {lengths[block.name]} parts of {rows_of(example)} inputs, other blocks whole inputs"
        else:
            reason = _failure(trial, example, block, visit, expected)
        if reason is None:
            proven.append(block)
        else:
            refused.append((block.name, reason))
    return _chained(proven, visits), refused


def _chained(blocks: list[Block], visits: Mapping[str, Visit]) -> list[Block]:
    """The blocks, numbered so that those have the same chain of which each begins with the output of the one before."""
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
        if end is None or before is None or not equal(before, end):
            chain += 1
        chained.append(replace(block, chain=chain))
        end, layer = after, block.inside
    return chained


def _returns_more(visit: Visit) -> bool:
    """Whether a module returns, besides its first tensor, one that it did not get as an argument."""
    if not isinstance(visit.returned, tuple | list):
        return False
    arguments = {id(value) for value in (*visit.args, *visit.kwargs.values())}
    return any(isinstance(value, Tensor) and id(value) not in arguments for value in visit.returned[1:])


def _failure(trial: nn.Module, example: Example, block: Block, visit: Visit, expected: Tensor | None) -> str | None:
    """Why the network cannot do without a block; None when it can."""
    args, kwargs = example
    if block.replace == "identity" and _returns_more(visit):
        return "it also makes a tensor that later layers may need"
    try:
        stand_in = Bypass(visit.layout(), block.replace == "zero")
        with without(trial, block.name, stand_in), eval_mode(trial), uncached(trial), torch.no_grad():
            after = first_tensor(trial(*args, **kwargs))
    except Exception as error:  # any failure of a foreign forward pass means the same: not safe to remove
        return f"the network fails without it ({(str(error).splitlines() or [type(error).__name__])[0][:120]})"
    if expected is None or after is None or expected.shape != after.shape:
        return "the network's output changes its shape without it"
    return None
