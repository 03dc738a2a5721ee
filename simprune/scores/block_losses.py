"""What the output loses without a block: what the block adds to its input beyond a linear map of each position.

The linear part is left out because layers behind the block are refitted and take it over.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from simprune.core.moments import Moments
from simprune.scores.output_changes import OutputLoss
from simprune.trace.capture import Reading
from simprune.trace.layers import joint_moments
from simprune.trace.sites import Site

RIDGE = 1e-3


class BlockLosses(Reading):
    """Reads what every block adds to its input; memory O(width^2) per block."""

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
        """The error at the output of every block, by name."""
        return {name: _loss(name, moments) for name, moments in self._moments.items()}


def _loss(name: str, moments: Moments) -> OutputLoss:
    covariance, mean = moments.covariance, moments.mean
    width = len(covariance) // 2
    inputs, cross = covariance[:width, :width], covariance[:width, width:]
    damping = RIDGE * inputs.diagonal().mean() + 1e-12
    ridged = inputs + damping * torch.eye(width, dtype=inputs.dtype, device=inputs.device)
    weight = torch.linalg.solve(ridged, cross).T
    constant = mean[width:] - weight @ mean[:width]

    def error(given: Tensor, made: Tensor) -> Tensor:
        x = _columns(given)
        left = _columns(made) - x - weight.to(x) @ x - constant.to(x)[:, None]
        return left.reshape(made.shape) if made.ndim >= 4 else left[0].T.reshape(made.shape)

    return OutputLoss(name, error)


def _columns(value: Tensor) -> Tensor:
    """(inputs, width, positions) of maps or tokens."""
    return value.flatten(2) if value.ndim >= 4 else value.flatten(0, -2).T.unsqueeze(0)
