"""What the output of a block loses when its input takes its place and the layers after it are refitted.

A block adds something to its input. The part of that which is a linear map of the input, position by position, is not
lost, because the layers after the block can take it over when they are refitted. The rest is lost.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from simprune.core.moments import Moments
from simprune.scores.output_changes import OutputLoss
from simprune.trace.capture import Reading
from simprune.trace.layers import joint_moments
from simprune.trace.sites import Site

RIDGE = 1e-3  # of the mean input variance, as in the repair


class BlockLosses(Reading):
    """Reads the moments of the input of every block, and of what the block adds to it; memory O(width^2) per block."""

    def __init__(self, blocks: Sequence[str]) -> None:
        self.blocks = blocks
        self._moments: dict[str, Moments] = {}
        self._entered: dict[str, Tensor] = {}

    @property
    def sites(self) -> list[Site]:
        return [Site(name, side=side) for name in self.blocks for side in ("input", "output")]

    def see(self, site: Site, value: Tensor) -> None:
        if site.side == "input":
            self._entered[site.module] = _columns(value).clone()  # the block may work in place
            return
        entered = self._entered.pop(site.module)
        moments = joint_moments(entered, _columns(value) - entered)
        known = self._moments.get(site.module)
        self._moments[site.module] = moments if known is None else known.merge(moments)

    def losses(self) -> dict[str, OutputLoss]:
        """The loss at the output of every block, by the block's name."""
        return {name: _loss(name, moments) for name, moments in self._moments.items()}


def _loss(name: str, moments: Moments) -> OutputLoss:
    covariance, mean = moments.covariance, moments.mean
    width = len(covariance) // 2
    inputs, cross = covariance[:width, :width], covariance[:width, width:]
    damping = RIDGE * inputs.diagonal().mean() + 1e-12
    ridged = inputs + damping * torch.eye(width, dtype=inputs.dtype, device=inputs.device)
    weight = torch.linalg.solve(ridged, cross).T
    constant = mean[width:] - weight @ mean[:width]

    def error(value: Tensor, output: Tensor) -> Tensor:
        x = _columns(value)
        lost = _columns(output) - x - weight.to(x) @ x - constant.to(x)[:, None]
        return lost.reshape(output.shape) if output.ndim >= 4 else lost[0].T.reshape(output.shape)

    return OutputLoss(name, error)


def _columns(value: Tensor) -> Tensor:
    """(inputs, width, positions) of maps; of tokens (1, width, all positions of all inputs)."""
    return value.flatten(2) if value.ndim >= 4 else value.flatten(0, -2).T.unsqueeze(0)
