"""Second-order cost: how far does the network's output change when a channel is removed and its readers are refitted?

This is the optimal brain surgeon (Hassibi and Stork, 1993) for structures. When the inputs u of a layer y = W x are
removed and the other weights are refitted by least squares, the error W_u [(C^-1)_uu]^-1 W_u^T remains, where C is the
covariance of the layer's inputs (for a convolution, of its patches). `simprune.trace.sensitivity` says what an error at
y does to the output. It counts errors at different positions as independent, which suffices for the order within a
group, but underestimates the damage of a group: `simprune.scores.output_changes` measures that.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from simprune.core.registry import register
from simprune.core.structures import Slice, UnitGroup
from simprune.scores.channels._inputs import Gathered
from simprune.scores.channels._score import ChannelScore, reading_weights
from simprune.scores.output_changes import OutputLoss
from simprune.trace.layers import can_be_fitted, matrix_of, patches, positions, taps, weight_of
from simprune.trace.network import Network
from simprune.trace.sensitivity import backpropagate

RIDGE = 1e-3  # of the mean input variance, as in the repair
RANK = 1e-12  # eigenvalues below this share of the largest are rounding errors and left out


@register(
    "score",
    "second_order",
    source="Hassibi and Stork 1993, for structures",
    why="the others, readers refitted, make up for {least:.1%} or more (mean {mean:.1%}) of each",
    output_losses=True,
)
def second_order(
    network: Network, calibration: Iterable, groups: Sequence[UnitGroup], *, seed: int = 0
) -> dict[str, ChannelScore]:
    """Damage: expected squared change of the output without a channel, as a share of the output's variance.

    Channels are removed greedily, and the readers are refitted after every removal. One forward and one backward pass
    over the batches. With width = inputs x kernel of a reader, and one row per sample and position, memory is O(width x
    min(width, rows)), and time is channels times as much. Groups that only grouped convolutions read cannot be
    refitted, and are left out.
    """
    model = network.model
    weights = {
        group: [part for part in reading_weights(group) if can_be_fitted(model.get_submodule(part.module))]
        for group in groups
    }
    readers = {part.module: _Reader(model.get_submodule(part.module)) for parts in weights.values() for part in parts}
    variance, _ = backpropagate(model, calibration, {name: reader.watch for name, reader in readers.items()}, seed)
    return {
        group.name: _eliminate(group.size, [_Surgeon(part, readers[part.module], variance) for part in parts])
        for group, parts in weights.items()
        if parts
    }


@dataclass
class _Reader:
    """Sums over the calibration set for one layer: its inputs, and the gradients at its output."""

    layer: nn.Module
    inputs: Gathered = field(default_factory=Gathered)
    gradients: Tensor | None = None
    samples: int = 0

    def watch(self, layer: nn.Module, value: Tensor, output: Tensor) -> None:
        self.inputs.add(patches(layer, value))
        self.samples += len(output)
        output.register_hook(self._add)

    def _add(self, gradient: Tensor) -> None:
        gradient = positions(self.layer, gradient)
        product = (gradient @ gradient.transpose(1, 2)).sum(0, dtype=torch.float64)
        self.gradients = product if self.gradients is None else self.gradients + product


def _eliminate(size: int, readers: "Sequence[_Surgeon]") -> ChannelScore:
    """Greedy removal of the channel of least cost, summed over readers; redundancy is relative to `alone`."""
    remaining = list(range(size))
    order: list[int] = []
    damage = torch.zeros(size, dtype=torch.float64)
    alone = torch.stack([reader.alone() for reader in readers]).sum(0)
    while len(remaining) > 1:
        costs = torch.stack([reader.costs(remaining) for reader in readers]).sum(0)
        channel = remaining.pop(int(costs.argmin()))
        damage[channel] = costs.min().clamp(min=0)
        order.append(channel)
        for reader in readers:
            reader.remove(channel)
    damage[remaining[0]] = alone[remaining[0]]
    lost = torch.where(alone > 0, damage / alone.clamp(min=1e-300), 0).clamp(0, 1)
    score = ChannelScore.of([*order, *remaining], 1 - lost, damage)
    return replace(score, losses=tuple(reader.loss(score.order[: score.half]) for reader in readers))


class _Surgeon:
    """One reader of a group: its weights and inverse covariance, while channels are removed one after another."""

    def __init__(self, part: Slice, reader: _Reader, variance: float) -> None:
        assert reader.gradients is not None
        self.name, self.layer = part.module, reader.layer
        kernel = taps(self.layer)
        self.columns = (torch.tensor(part.indices)[:, :, None] * kernel + torch.arange(kernel)).flatten(1)
        self.inputs = reader.inputs.inverted(RIDGE)
        # The metric G weighs errors of the output. tr(G W ... W^T) = |F W ...|^2 with F^T F = G, so F is multiplied
        # into the weights once and squared norms suffice from there on.
        metric = reader.gradients.cpu() / (reader.samples * variance)
        values, vectors = torch.linalg.eigh(metric)
        seen = values > RANK * values[-1].clamp(min=0)
        root = (vectors[:, seen] * values[seen].sqrt()).T
        self.weight = root @ matrix_of(self.layer).double().cpu()

    def alone(self) -> Tensor:
        """(channels,) error without a channel when nothing is refitted."""
        weights = self.weight[:, self.columns].movedim(0, -1)  # (channels, k, outputs)
        return (weights * (self.inputs.blocks(self.columns) @ weights)).sum((1, 2))

    def costs(self, channels: Sequence[int]) -> Tensor:
        """(channels,) error that remains without a channel when the other weights are refitted."""
        columns = self.columns[list(channels)]  # (channels, k)
        weights = self.weight[:, columns].movedim(0, -1)
        return (weights * torch.linalg.solve(self.inputs.inverse_blocks(columns), weights)).sum((1, 2))

    def remove(self, channel: int) -> None:
        """Remove the inputs of a channel and refit the other weights."""
        columns = self.columns[channel]
        removed = self.weight[:, columns]
        self.weight.addmm_(removed, self.inputs.remove(columns), alpha=-1)

    def loss(self, channels: Sequence[int]) -> OutputLoss:
        """The loss at the layer's output without these channels, the other weights refitted: another linear layer."""
        matrix = matrix_of(self.layer).double().cpu()
        remaining = torch.ones(matrix.shape[1], dtype=torch.bool)
        remaining[self.columns[list(channels)]] = False
        lost = matrix.clone()
        lost[:, remaining] -= self.inputs.refit(matrix, remaining)
        layer = copy.deepcopy(self.layer)
        weight = layer.get_parameter("weight")
        with torch.no_grad():
            weight.copy_(weight_of(layer, lost))
        layer.bias = nn.Parameter((-lost @ self.inputs.mean).to(weight))
        return OutputLoss(self.name, lambda value, _: layer(value))
