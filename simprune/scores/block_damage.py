"""What it costs to bypass a block, in the unit of `second_order`: so that depth and width can be weighed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from simprune.moments import Moments
from simprune.scores.sensitivity import backpropagate
from simprune.surgery.least_squares import joint_moments

RIDGE = 1e-3


def block_damage(model: nn.Module, calibration: Iterable, blocks: Sequence[str], seed: int = 0) -> dict[str, float]:
    """Expected squared change of the output without the block, as a share of the output's variance.

    Only what the block adds to its input beyond a linear map of each position counts: layers behind it are refitted and
    take over the linear part. One forward and one backward pass; memory O(width^2) per block.
    """
    stands = {name: _Stand() for name in blocks}
    variance = backpropagate(model, calibration, {name: stand.watch for name, stand in stands.items()}, seed)[0]
    return {name: stand.damage(variance) for name, stand in stands.items()}


@dataclass
class _Stand:
    """Sums over the calibration set for one block: input and addition together, and the gradients at its output."""

    moments: Moments | None = None
    gradients: Tensor | None = None
    samples: int = 0

    def watch(self, block: nn.Module, given: Tensor, made: Tensor) -> None:
        found = joint_moments(_columns(given), _columns(made.detach() - given))
        self.moments = found if self.moments is None else self.moments.merge(found)
        self.samples += len(made)
        made.register_hook(lambda gradient: self._add(_columns(gradient)))

    def _add(self, gradient: Tensor) -> None:
        product = (gradient @ gradient.transpose(1, 2)).sum(0, dtype=torch.float64)
        self.gradients = product if self.gradients is None else self.gradients + product

    def damage(self, variance: float) -> float:
        assert self.moments is not None
        assert self.gradients is not None
        covariance = self.moments.covariance
        width = len(covariance) // 2
        inputs, cross, added = covariance[:width, :width], covariance[:width, width:], covariance[width:, width:]
        damping = RIDGE * inputs.diagonal().mean() + 1e-12
        ridged = inputs + damping * torch.eye(width, dtype=inputs.dtype, device=inputs.device)
        left = added - cross.T @ torch.linalg.solve(ridged, cross)
        return max(float((self.gradients * left).sum()) / (self.samples * variance), 0.0)


def _columns(value: Tensor) -> Tensor:
    """(inputs, width, positions) of maps or tokens."""
    return value.flatten(2) if value.ndim >= 4 else value.flatten(0, -2).T.unsqueeze(0)
