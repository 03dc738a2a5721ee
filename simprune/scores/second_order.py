"""Second-order cost: by how much does the network's output move when a channel goes and its readers are refitted?

Optimal brain surgeon (Hassibi and Stork, 1993) for structures. Removing the inputs u of a layer y = W x and refitting
the rest by least squares leaves the error W_u [(C^-1)_uu]^-1 W_u^T, where C is the covariance of the layer's inputs
(for a convolution, of its patches). What an error at y does to the output is in `simprune.scores.sensitivity`; there
errors at different positions count as independent, which is right for the order in a group and too little for its
damage: see `simprune.scores.output_changes`.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from simprune.moments import Moments
from simprune.scores._score import Score
from simprune.scores.output_changes import Loss
from simprune.scores.predictability import predictability
from simprune.scores.sensitivity import backpropagate
from simprune.structures import UnitGroup
from simprune.surgery.least_squares import can_be_fitted, joint_moments, matrix_of, patches, positions, taps, weight_of

RIDGE = 1e-3  # of the mean input variance, as in the repair


def second_order(
    model: nn.Module, calibration: Iterable, groups: Sequence[UnitGroup], seed: int = 0
) -> dict[str, Score]:
    """Damage: expected squared change of the output when a channel goes, as a share of the output's variance.

    Greedy elimination, the refit updated after every step. One forward and one backward pass; memory and time per
    reader O((inputs x kernel)^2) and O(channels x (inputs x kernel)^2). Groups that only grouped convolutions read
    cannot be refitted: they are scored by predictability, as if each carried the whole output.
    """
    readers: dict[str, _Reader] = {}
    for group in groups:
        for part in group.slices:
            if part.side == "in" and part.tensor.endswith("weight") and can_be_fitted(model.get_submodule(part.module)):
                readers.setdefault(part.module, _Reader())
    variance = backpropagate(model, calibration, {name: reader.watch for name, reader in readers.items()}, seed)[0]
    scores = {}
    for group in groups:
        surgeons = [
            _Surgeon(part.module, model.get_submodule(part.module), readers[part.module], part.indices, variance)
            for part in group.slices
            if part.side == "in" and part.module in readers and part.tensor.endswith("weight")
        ]
        scores[group.name] = _eliminate(group.size, surgeons) if surgeons else None
    rest = [group for group in groups if scores[group.name] is None]
    return scores | (predictability(model, calibration, rest) if rest else {})


@dataclass
class _Reader:
    """Sums over the calibration set for one layer: its inputs, and the gradients at its output."""

    inputs: Moments | None = None
    gradients: Tensor | None = None
    samples: int = 0

    def watch(self, layer: nn.Module, given: Tensor, made: Tensor) -> None:
        found = joint_moments(patches(layer, given))
        self.inputs = found if self.inputs is None else self.inputs.merge(found)
        self.samples += len(made)
        made.register_hook(lambda gradient: self._add(positions(layer, gradient)))

    def _add(self, gradient: Tensor) -> None:
        product = (gradient @ gradient.transpose(1, 2)).sum(0, dtype=torch.float64)
        self.gradients = product if self.gradients is None else self.gradients + product


def _eliminate(size: int, readers: "Sequence[_Surgeon]") -> Score:
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
    score = Score((*order, remaining[0]), tuple((1 - lost).tolist()), tuple(damage.tolist()))
    return replace(score, losses=tuple(reader.loss(score.order[: score.half]) for reader in readers))


class _Surgeon:
    """One reader of a group: its weights and inverse covariance as inputs go one after another."""

    def __init__(
        self, name: str, layer: nn.Module, reader: _Reader, indices: tuple[tuple[int, ...], ...], variance: float
    ) -> None:
        assert reader.inputs is not None
        assert reader.gradients is not None
        self.name, self.layer = name, layer
        kernel = taps(layer)
        self.columns = [
            torch.tensor([entry * kernel + tap for entry in entries for tap in range(kernel)]) for entries in indices
        ]
        self.covariance, self.mean = reader.inputs.covariance.cpu(), reader.inputs.mean.cpu()
        size = len(self.covariance)
        damping = RIDGE * self.covariance.diagonal().mean() + 1e-12
        self.ridged = self.covariance + damping * torch.eye(size, dtype=torch.float64)
        self.inverse = torch.linalg.inv(self.ridged)
        # tr(G W ... W^T) = |F W ...|^2 with F^T F = G: fold the metric into the weights
        metric = reader.gradients.cpu() / (reader.samples * variance)
        values, vectors = torch.linalg.eigh(metric)
        root = (vectors * values.clamp(min=0).sqrt()).T
        self.weight = root @ matrix_of(layer).double().cpu()

    def alone(self) -> Tensor:
        """What each channel contributes, were nothing refitted."""
        return torch.stack(
            [
                torch.einsum(
                    "oi,ij,oj->", self.weight[:, columns], self.covariance[columns][:, columns], self.weight[:, columns]
                )
                for columns in self.columns
            ]
        )

    def costs(self, channels: Sequence[int]) -> Tensor:
        """Error left by the removal of each channel with the rest refitted."""
        columns = torch.stack([self.columns[channel] for channel in channels])  # (channels, k)
        blocks = self.inverse[columns[:, :, None], columns[:, None, :]]
        weights = self.weight[:, columns].permute(1, 2, 0)  # (channels, k, outputs)
        return (weights * torch.linalg.solve(blocks, weights)).sum((1, 2))

    def remove(self, channel: int) -> None:
        """Take the channel's inputs out and refit what is left."""
        columns = self.columns[channel]
        half = torch.linalg.solve(self.inverse[columns][:, columns], self.inverse[columns])  # (k, inputs)
        self.weight.addmm_(self.weight[:, columns], half, alpha=-1)
        self.inverse.addmm_(self.inverse[:, columns], half, alpha=-1)

    def loss(self, gone: Sequence[int]) -> Loss:
        """What the layer no longer gives without these channels, the rest refitted: a layer of its kind."""
        matrix = matrix_of(self.layer).double().cpu()
        kept = torch.ones(len(self.covariance), dtype=torch.bool)
        kept[torch.cat([self.columns[channel] for channel in gone])] = False
        lost = matrix.clone()
        if kept.any():
            refitted = torch.linalg.solve(self.ridged[kept][:, kept], self.covariance[kept] @ matrix.T).T
            lost[:, kept] -= refitted
        layer = copy.deepcopy(self.layer)
        weight = layer.get_parameter("weight")
        with torch.no_grad():
            weight.copy_(weight_of(layer, lost))
        layer.bias = nn.Parameter((-lost @ self.mean).to(weight))
        return Loss(self.name, lambda given, _: layer(given))
