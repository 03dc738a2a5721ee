import numpy as np
import pytest
import torch

from simprune.scores.channels.correlation import eliminate
from simprune.structures import structure
from simprune.trace.network import Network
from tests.networks import NAMES, build
from tests.scores.scoring import correlations_of


def correlation_of(rows):
    return torch.corrcoef(rows.T.double())[None]


def unexplained(rows, channel, kept):
    """Share of one column's variance that a least-squares fit on the kept columns leaves, by numpy."""
    x = rows - rows.mean(0)
    target, given = x[:, channel], x[:, kept]
    residual = target - given @ np.linalg.lstsq(given, target, rcond=None)[0]
    return residual @ residual / (target @ target)


def test_elimination_equals_least_squares_at_every_step():
    rows = torch.randn(400, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    order, shares = eliminate(correlation_of(rows))
    kept = list(range(6))
    for channel in order[:-1]:
        expected = {c: unexplained(rows.numpy(), c, [k for k in kept if k != c]) for c in kept}
        assert shares[channel] == pytest.approx(expected[channel], abs=2e-3)  # the ridge
        assert expected[channel] <= min(expected.values()) + 1e-3
        kept.remove(channel)
    assert sorted(order) == list(range(6))


def test_a_duplicate_and_a_dead_channel_go_first():
    rows = torch.randn(300, 5)
    rows = torch.cat([rows, rows[:, 2:3] * -3 + 1, torch.full((300, 1), 4.0)], 1)
    correlation = torch.nan_to_num(correlation_of(rows))
    correlation[0, 6, 6] = 0
    order, shares = eliminate(correlation)
    assert order[0] == 6
    assert shares[6] == 0
    assert order[1] in (2, 5)
    assert shares[order[1]] < 1e-3
    assert min(shares[order[2]], shares[order[3]]) > 0.9


def test_one_channel_and_constant_channels_are_defined():
    assert eliminate(torch.ones(1, 1, 1))[0] == [0]
    order, shares = eliminate(torch.zeros(2, 4, 4))
    assert sorted(order) == [0, 1, 2, 3]
    assert torch.isfinite(shares).all()


@pytest.mark.parametrize("network", NAMES)
def test_batches_do_not_matter_to_the_correlations(network):
    model, x = build(network)
    groups = structure("channels").find(Network(model, ((x[:2],), {})))[0]
    once, split = (correlations_of(model, batches, groups) for batches in ([x], x.split(5)))
    for group in groups:
        assert once[group.name].shape == (len(group.consumers), group.size, group.size)
        np.testing.assert_allclose(once[group.name], split[group.name], atol=1e-9)
