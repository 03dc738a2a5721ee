"""Channel independence (CHIP: Sui et al., 2021): how much of the nuclear norm is lost with a channel?

With A the rows of a reader's input, the independence of channel c is |A|_* - |A without the columns of c|_*. The
nuclear norm is the sum of the square roots of the eigenvalues of A^T A, so only A^T A is held in memory, not the rows.
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
    """Damage: the share of the nuclear norm that is lost with a channel, in [0, 1] (mean over the readers' inputs).

    Rows are pooled over positions, one per input, and not centred. Every channel is compared with all others, also with
    those that would be removed before it, so both of two duplicates have a damage. One pass over the batches; memory
    O(readers x channels^2), time O(readers x channels^4).
    """
    moments = reader_moments(network, calibration, groups, "pool")
    scores = {}
    for group in groups:
        shares = [_independence(reader.about_origin().scatter.cpu(), group.size) for reader in moments[group.name]]
        scores[group.name] = by_damage(torch.stack(shares).mean(0))
    return scores


def _independence(gram: Tensor, units: int) -> Tensor:
    """(units,) share of the nuclear norm that is lost with the columns of a unit; `gram` is A^T A, unit after unit.

    >>> _independence(torch.diag(torch.tensor([1.0, 9.0, 0.0])), 3)
    tensor([0.2500, 0.7500, 0.0000])
    """
    whole = _nuclear_norm(gram)
    columns = torch.arange(len(gram)).view(units, -1)
    others = [columns[torch.arange(units) != unit].flatten() for unit in range(units)]
    remaining = torch.stack([_nuclear_norm(gram[columns][:, columns]) for columns in others])
    return ((whole - remaining) / whole.clamp(min=1e-300)).clamp(0, 1)


def _nuclear_norm(gram: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum()
