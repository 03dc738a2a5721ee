"""What the output loses without a block: what the block adds to its input beyond a linear map of each position.

The linear part is left out because layers behind the block are refitted and take it over.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from simprune.core.moments import Moments
from simprune.scores.output_changes import Loss
from simprune.trace.capture import Site, run
from simprune.trace.layers import joint_moments

RIDGE = 1e-3


def block_losses(model: nn.Module, calibration: Iterable, blocks: Sequence[str]) -> dict[str, Loss]:
    """For every block, the error at its output. One forward pass; memory O(width^2) per block."""
    moments: dict[str, Moments] = {}
    entered: dict[str, Tensor] = {}

    def see(site: Site, value: Tensor) -> None:
        if site.side == "input":
            entered[site.module] = _columns(value).clone()  # the block may work in place
            return
        given = entered.pop(site.module)
        found = joint_moments(given, _columns(value) - given)
        known = moments.get(site.module)
        moments[site.module] = found if known is None else known.merge(found)

    run(model, calibration, [Site(name, side=side) for name in blocks for side in ("input", "output")], see)
    return {name: _loss(name, found) for name, found in moments.items()}


def _loss(name: str, moments: Moments) -> Loss:
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

    return Loss(name, error)


def _columns(value: Tensor) -> Tensor:
    """(inputs, width, positions) of maps or tokens."""
    return value.flatten(2) if value.ndim >= 4 else value.flatten(0, -2).T.unsqueeze(0)
