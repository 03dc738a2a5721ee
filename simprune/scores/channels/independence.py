"""Channel independence (CHIP: Sui et al., 2021, arXiv:2110.13981): how much nuclear norm goes with a channel?

With A the rows of a reader's input, independence of channel c is |A|_* - |A without the columns of c|_*. The nuclear
norm is the sum of the square roots of the eigenvalues of A^T A, so the rows need not be kept.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from simprune.core.registry import register
from simprune.core.structures import UnitGroup
from simprune.scores.channels._parts import by_damage, reader_moments
from simprune.scores.channels._score import ChannelScore
from simprune.trace.network import Network


@register("score", "independence", source="arXiv:2110.13981")
def independence(network: Network, calibration: Iterable, groups: Sequence[UnitGroup]) -> dict[str, ChannelScore]:
    """Damage: the share of the nuclear norm that goes with a channel, in [0, 1]; mean over the readers' inputs.

    Rows are pooled over positions, one per input, and not centred. Every channel is judged beside all others, so both
    of two duplicates cost something. One forward pass; memory O(readers x channels^2), time O(readers x channels^4).
    """
    moments = reader_moments(network, calibration, groups, "pool")
    scores = {}
    for group in groups:
        shares = [_independence(found.about_origin().scatter.cpu(), group.size) for found in moments[group.name]]
        scores[group.name] = by_damage(torch.stack(shares).mean(0))
    return scores


def _independence(gram: Tensor, units: int) -> Tensor:
    """Share of the nuclear norm that each unit's columns take with them.

    >>> _independence(torch.diag(torch.tensor([1.0, 9.0, 0.0])), 3)
    tensor([0.2500, 0.7500, 0.0000])
    """
    whole = _nuclear_norm(gram)
    columns = torch.arange(len(gram)).view(units, -1)
    kept = [columns[torch.arange(units) != unit].flatten() for unit in range(units)]
    left = torch.stack([_nuclear_norm(gram[columns][:, columns]) for columns in kept])
    return ((whole - left) / whole.clamp(min=1e-300)).clamp(0, 1)


def _nuclear_norm(gram: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum()
