"""Linear predictability: how much of a channel's variance do the other channels of its group explain?"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from simprune.core.moments import Moments
from simprune.core.structures import UnitGroup
from simprune.scores.channels._score import Score
from simprune.trace.capture import Site, run

RIDGE = 1e-4  # of a channel's unit variance: keeps exact duplicates solvable


def predictability(model: nn.Module, calibration: Iterable, groups: Sequence[UnitGroup]) -> dict[str, Score]:
    """Backward elimination on the correlations at the readers' inputs; damage is the unexplained share / channels.

    One forward pass; memory O(readers x channels^2); O(readers x channels^3) per group.
    """
    scores = {}
    for name, correlations in reader_correlations(model, calibration, groups).items():
        order, unexplained = eliminate(correlations)
        scores[name] = Score(
            order=tuple(order),
            redundancy=tuple((1 - unexplained).clamp(0, 1).tolist()),
            damage=tuple((unexplained.clamp(0, 1) / len(order)).tolist()),
        )
    return scores


def reader_correlations(model: nn.Module, calibration: Iterable, groups: Sequence[UnitGroup]) -> dict[str, Tensor]:
    """(readers, C, C) correlation of each group's channels at the input of every module that reads them."""
    readers: dict[str, list[tuple[str, Tensor]]] = {}
    for group in groups:
        for part in group.slices:
            if part.side == "in" and part.tensor.endswith("weight"):
                readers.setdefault(part.module, []).append((group.name, torch.tensor(part.inputs or part.indices)))
    moments: dict[tuple[str, str], Moments] = {}

    def see(site: Site, value: Tensor) -> None:
        rows = site.rows(value)
        for group, indices in readers[site.module]:
            entries = rows[:, indices.to(rows.device)]  # (rows, C, entries per channel)
            found = Moments.of(entries.movedim(1, -1).flatten(0, 1))
            key = (group, site.module)
            moments[key] = moments[key].merge(found) if key in moments else found

    run(model, calibration, [Site(name, "positions", "input") for name in readers], see)
    if readers and not moments:
        raise ValueError("calibration has no batches; give at least one")
    return {
        group.name: torch.stack([_correlation(found) for (name, _), found in moments.items() if name == group.name])
        for group in groups
    }


def _correlation(moments: Moments) -> Tensor:
    """Correlation matrix on the CPU; a dead channel has zero variance and correlates with nothing, itself included."""
    covariance = moments.covariance.cpu().clone()
    scale = covariance.diagonal().clamp(min=0).sqrt()
    alive = scale > 1e-12 * max(float(scale.max()), 1e-300)
    inverse = torch.where(alive, 1 / scale.where(alive, torch.ones_like(scale)), torch.zeros_like(scale))
    return covariance * torch.outer(inverse, inverse)


def eliminate(correlations: Tensor) -> tuple[list[int], Tensor]:
    """Backward elimination: remove again and again the channel that the remaining ones predict best.

    `correlations`: (readers, C, C). Returns the order of removal, the last channel included, and each channel's
    unexplained share of variance when it went (mean over readers; 0 for a dead channel, 1 for the last one).
    Cost O(readers x C^3).

    >>> order, unexplained = eliminate(torch.tensor([[[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]]))
    >>> order[0] in (0, 1), bool(unexplained[order[0]] < 0.01)
    (True, True)
    """
    width = correlations.shape[-1]
    alive = correlations.diagonal(dim1=1, dim2=2) > 0.5  # (readers, C)
    ridged = correlations.double() + torch.diag_embed(torch.where(alive, RIDGE, 1.0).double())
    precision = torch.linalg.inv(ridged)
    unexplained = torch.ones(width, dtype=torch.float64)
    remaining = torch.ones(width, dtype=torch.bool)
    order: list[int] = []
    for _ in range(width - 1):
        share = torch.where(alive, 1 / precision.diagonal(dim1=1, dim2=2), 0.0).mean(0)
        share[~remaining] = float("inf")
        channel = int(share.argmin())
        unexplained[channel] = share[channel]
        remaining[channel] = False
        order.append(channel)
        column = precision[:, :, channel].clone()
        precision -= column[:, :, None] * column[:, None, :] / column[:, channel, None, None]
        precision[:, channel, channel] = 1.0  # out of the game; keeps the division above defined
    order.append(int(remaining.nonzero()[0, 0]))
    return order, unexplained
