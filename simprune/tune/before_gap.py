"""The repair of one trial: the layer that writes the stream before a gap gives what the removed blocks gave.

It is the first layer that the whole repair changes, and the one that matters most. A fit of it alone tells cheaply how
much of a removed block is lost for good: in SmolLM2-135M the blocks that are missed least without any repair are not
those that are missed least after it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core.batches import first_tensor, mask_at
from simprune.core.cost import Example
from simprune.repair.halves import SMALL, find_halves
from simprune.repair.ridge import Ridge, fit
from simprune.trace.context import evaluation, uncached
from simprune.trace.hooks import hooks
from simprune.trace.layers import weight_of
from simprune.trace.network import Network

ROWS = 4096  # of a layer that are fitted at once: sums over few rows take as long as over many


@dataclass(frozen=True)
class Writer:
    """The last layer of a block: `gain` (channels,) times its output is the last that the block adds to the stream."""

    layer: str
    gain: Tensor


def writers_of(network: Network) -> dict[str, Writer]:
    """The writer of every block that is a sum of its input and of what its halves give, by the block's name."""
    shared = network.execution.elsewhere  # refitting these would change what other layers compute
    layers = [layer for layer in network.order if layer not in shared]
    halves = find_halves(network.model, network, layers, ()).layers
    return {half.block: Writer(layer, half.gain) for layer, half in halves.items() if half.is_last}


def fit_writer(
    small: nn.Module,
    model: nn.Module,
    block: str,
    writer: Writer,
    calls: Sequence[Example],
    goals: Sequence[Tensor],
    batches: Sequence[Any],
    ridge: Ridge,
) -> Mapping[str, Tensor]:
    """Change a block's writer, in place, so that the stream behind the block comes near another stream.

    The ridge pulls towards the original's weights, also where an earlier gap at the same place has changed them.

    Args:
        small: the network.
        model: the original.
        block: name of the block, which is a module of its own.
        writer: of the block.
        calls: arguments of the block, batch by batch.
        goals: the stream that is wanted behind the block, batch by batch.
        batches: of the network, which know where padding is.
        ridge: of the fit (see `simprune.repair.ridge`).

    Returns:
        The writer's parameters before, by name.
    """
    layer = small.get_submodule(writer.layer)
    bias = getattr(layer, "bias", None)

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for (value, given, output), goal, batch in zip(
            runs_of(small, block, writer.layer, calls), goals, batches, strict=True
        ):
            target = given + (goal - output) / writer.gain.to(output)
            if bias is None:  # an error counts in relation to the size of the stream at its token
                size = goal.float().square().mean(-1, keepdim=True).sqrt()
                size = size.clamp(min=SMALL * float(size.mean()))
                value, target = value / size.to(value.device), target / size.to(target.device)
            mask = mask_at(batch, writer.layer)
            if mask is not None and value.shape[:2] == mask.shape:
                value, target = value[mask.to(value.device)], target[mask.to(value.device)]
            yield value, target

    before = {f"{writer.layer}.{key}": value.detach().clone() for key, value in layer.named_parameters()}
    with torch.no_grad():
        for key, value in layer.named_parameters():
            value.copy_(model.get_submodule(writer.layer).get_parameter(key))
        # A ridge that is chosen is chosen on inputs held out, so batches stay as they are; one that is given is not.
        solved = fit(layer, pairs() if ridge == "auto" else _joined(pairs()), ridge, bias is not None)
        layer.get_parameter("weight").copy_(weight_of(layer, solved.matrix))
        if bias is not None:
            bias.copy_(solved.intercept)
    return before


def _joined(pairs: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows of all pairs, about `ROWS` at a time."""
    waiting: list[tuple[Tensor, ...]] = []
    for pair in pairs:
        waiting.append(tuple(part.flatten(0, -2) for part in pair))
        if sum(len(rows) for rows, _ in waiting) >= ROWS:
            yield _together(waiting)
            waiting = []
    if waiting:
        yield _together(waiting)


def _together(parts: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor]:
    inputs, targets = zip(*parts, strict=True)
    return torch.cat(inputs), torch.cat(targets)


def runs_of(
    small: nn.Module, block: str, layer: str, calls: Sequence[Example]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The input and output of a layer in a block, and the output of the block, for every call of the block."""
    module, inner, seen = small.get_submodule(block), small.get_submodule(layer), list[tuple[Tensor, Tensor]]()

    def see(_: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        value, given = first_tensor((args, kwargs)), first_tensor(output)
        assert value is not None and given is not None
        seen[:] = [(value.clone(), given.clone())]  # later modules may work in place

    with evaluation(small), uncached(small), hooks(after=[(inner, see)]):
        for args, kwargs in calls:
            output = first_tensor(module(*args, **kwargs))
            assert output is not None
            yield *seen[0], output
