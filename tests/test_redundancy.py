import json

import numpy as np
import pytest
import torch

from simprune import measures
from simprune.redundancy import as_redundancy, eliminate, estimate, reader_correlations
from simprune.structures import find_channel_groups
from tests.networks import NAMES, build

CKA = measures.get("cka_debiased")


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
def test_scores_are_shares_and_the_result_is_data(network):
    model, x = build(network)
    found = estimate(model, [x], CKA)
    assert found.entries
    for entry in found.entries:
        scores = np.atleast_1d(entry.redundancy)
        assert ((scores >= 0) & (scores <= 1)).all()
        assert 0 < entry.share < 1
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["entries"]
    assert all(entry.name in found.table() for entry in found.entries)


@pytest.mark.parametrize("network", NAMES)
def test_batches_do_not_matter_to_the_correlations(network):
    model, x = build(network)
    groups = find_channel_groups(model, ((x[:2],), {}))[0]
    once, split = (reader_correlations(model, batches, groups) for batches in ([x], x.split(5)))
    for group in groups:
        assert once[group.name].shape == (len(group.consumers), group.size, group.size)
        np.testing.assert_allclose(once[group.name], split[group.name], atol=1e-9)


@pytest.mark.parametrize("network", ["Residual", "Flat", "Concat"])
def test_a_planted_duplicate_is_found(network):
    model, x = build(network)
    group = find_channel_groups(model, ((x[:2],), {}))[0][-1]
    for part in group.slices:
        if part.side == "out" and part.indices[0] == (0,):
            tensor = dict(model.state_dict())[part.tensor]
            tensor.select(part.dim, 1).copy_(tensor.select(part.dim, 0))
    (entry,) = [entry for entry in estimate(model, [x], CKA).channels if entry.name == group.name]
    assert {0, 1} & {entry.order[0], entry.order[1]}
    assert max(entry.redundancy[0], entry.redundancy[1]) > 0.999
    assert (entry.nearest[0], entry.nearest[1]) == (1, 0)


def test_an_inert_block_is_the_most_redundant():
    model, x = build("Residual")
    torch.nn.init.zeros_(model.blocks[1].bn2.weight)
    torch.nn.init.zeros_(model.blocks[1].bn2.bias)
    first, second = estimate(model, [x], CKA).blocks
    assert second.redundancy == pytest.approx(1)
    assert first.redundancy < 1


def test_distances_become_redundancy_in_the_same_direction():
    similar, distance = measures.get("cka"), measures.get("cka_angular")
    assert as_redundancy(similar, 0.7) == 0.7
    assert as_redundancy(distance, 0.0) == 1.0
    assert as_redundancy(distance, distance.range[1]) == 0.0
    assert as_redundancy(similar, float("nan")) == 0.0


@pytest.mark.parametrize("structures", [(), ("channel",)])
def test_unknown_structures_are_refused(structures):
    model, x = build("Flat")
    with pytest.raises(ValueError, match="structures must be some of channels, blocks"):
        estimate(model, [x], CKA, structures)


def test_no_calibration_is_an_error():
    with pytest.raises(ValueError, match="no batches"):
        estimate(build("Flat")[0], [], CKA)
