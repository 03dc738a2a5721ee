"""Leave one out: what do the inputs of the layers that read a group lose without one channel?

`leave_one_out_cka`: linear CKA (Kornblith et al., 2019) of a representation X with the remaining columns K of itself is
|S_:K|^2 / (|S| |S_KK|) in Frobenius norms, where S is the covariance of X. So it follows from sums of squares of S.

`independence` (CHIP: Sui et al., 2021): with A the rows of a reader's input, the independence of channel c is
|A|_* - |A without the columns of c|_*. The nuclear norm is the sum of the square roots of the eigenvalues of A^T A, so
only A^T A is held in memory, not the rows.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from simprune.core.registry import register
from simprune.core.structures import UnitGroup
from simprune.core.ties import ALIKE, first_least
from simprune.scores.channels._moments import ReaderMoments
from simprune.scores.channels._score import ChannelScore, by_damage
from simprune.trace.capture import read
from simprune.trace.network import Network


@register("score", "leave_one_out_cka", source="arXiv:1905.00414")
def leave_one_out_cka(network: Network, calibration: Iterable, groups: Sequence[UnitGroup]) -> dict[str, ChannelScore]:
    """Damage: the linear CKA that is lost when a channel is removed at its turn, in [0, 1].

    Channels are removed greedily; CKA is the mean over the inputs of the readers. CKA weighs directions by their
    variance: a channel of small variance costs little, and the second of two duplicates costs something. Redundancy is
    1 - damage / the greatest damage of the group. One pass over the batches; memory O(readers x (channels x
    entries)^2), time O(readers x channels^2) per group after the moments.
    """
    moments = ReaderMoments(groups)
    read(network.model, calibration, [moments], network.axes)
    return {
        group.name: _eliminate(
            torch.stack([_blocks(reader.covariance.cpu(), group.size) for reader in moments.of(group)])
        )
        for group in groups
    }


def _blocks(covariance: Tensor, units: int) -> Tensor:
    """(units, units) squared norms of the blocks of a covariance, relative to their sum."""
    entries = len(covariance) // units
    squares = covariance.view(units, entries, units, entries).square().sum((1, 3))
    return squares / squares.sum().clamp(min=1e-300)


def _eliminate(squares: Tensor) -> ChannelScore:
    """Greedy removal of the channel without which CKA is greatest, from (readers, C, C) squared covariances in float64.

    >>> _eliminate(torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64).diag()[None]).order
    (1, 2, 0)
    """
    size = squares.shape[1]
    # squared covariances of every channel with all of X, with itself, and with the remaining channels K
    rows, own = squares.sum(2), squares.diagonal(dim1=1, dim2=2)
    among, total = rows, rows.sum(1)
    crossed = inner = total  # |S_:K|^2 and |S_KK|^2
    remaining = torch.ones(size, dtype=torch.bool)
    damage = torch.zeros(size, dtype=torch.float64)
    order: list[int] = []
    similarity = 1.0
    for _ in range(size):
        norm = (inner[:, None] - 2 * among + own).clamp(min=0)
        left = (crossed[:, None] - rows).clamp(min=0) / (total[:, None] * norm).sqrt().clamp(min=1e-300)
        left = torch.where(total[:, None] > 0, left, 1.0).mean(0).clamp(0, 1)
        channel = first_least((-left.masked_fill(~remaining, -1)).tolist(), ALIKE)
        if len(order) == size - 1:
            # without the last channel CKA is 0, but 1 at readers whose inputs are constant, where nothing can be lost
            left = (~(total > 0)).double().mean().expand(size)
        damage[channel] = max(similarity - float(left[channel]), 0.0)
        similarity = min(similarity, float(left[channel]))
        crossed, inner = crossed - rows[:, channel], (inner - 2 * among[:, channel] + own[:, channel]).clamp(min=0)
        among = among - squares[:, :, channel]
        remaining[channel] = False
        order.append(channel)
    return by_damage(damage, order)


@register("score", "independence", source="arXiv:2110.13981")
def independence(network: Network, calibration: Iterable, groups: Sequence[UnitGroup]) -> dict[str, ChannelScore]:
    """Damage: the share of the nuclear norm that is lost with a channel, in [0, 1] (mean over the readers' inputs).

    Rows are pooled over positions, one per input, and not centred. Every channel is compared with all others, also with
    those that would be removed before it, so both of two duplicates have a damage. One pass over the batches; memory
    O(readers x channels^2), time O(readers x channels^4).
    """
    moments = ReaderMoments(groups, "pool")
    read(network.model, calibration, [moments], network.axes)
    scores = {}
    for group in groups:
        grams = [reader.about_origin().scatter.cpu() for reader in moments.of(group)]
        scores[group.name] = by_damage(torch.stack([_lost_norm(gram, group.size) for gram in grams]).mean(0))
    return scores


def _lost_norm(gram: Tensor, units: int) -> Tensor:
    """(units,) share of the nuclear norm that is lost with the columns of a unit; `gram` is A^T A, unit after unit.

    >>> _lost_norm(torch.diag(torch.tensor([1.0, 9.0, 0.0])), 3)
    tensor([0.2500, 0.7500, 0.0000])
    """
    whole = _nuclear_norm(gram)
    columns = torch.arange(len(gram)).view(units, -1)
    others = [columns[torch.arange(units) != unit].flatten() for unit in range(units)]
    remaining = torch.stack([_nuclear_norm(gram[columns][:, columns]) for columns in others])
    return ((whole - remaining) / whole.clamp(min=1e-300)).clamp(0, 1)


def _nuclear_norm(gram: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum()
