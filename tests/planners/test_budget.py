"""Budgets: shares, amounts with units, and what is refused."""

import pytest

from simprune.core.cost import Cost
from simprune.planners.budget import BUDGETS, Budget

ORIGINAL = Cost(1_000_000, 4_000, 16_000)


@pytest.mark.parametrize(
    "kind, text, amount, share",
    [
        ("macs", 0.5, 0.5, True),
        ("macs", 1, 1.0, True),
        ("macs", "0.5", 0.5, True),
        ("params", "40%", 0.4, True),
        ("macs", "60M", 60e6, False),
        ("macs", "1.5 G", 1.5e9, False),
        ("params", "0.4M", 4e5, False),
        ("params", 1234, 1234, False),
        ("bytes", "2MB", 2e6, False),
        ("bytes", "2MiB", 2 * 2**20, False),
        ("memory", "1KiB", 1024, False),
        ("bytes", "12B", 12, False),
        ("latency", "3ms", 3e-3, False),
        ("latency", "250us", 250e-6, False),
        ("latency", 0.8, 0.8, True),
    ],
)
def test_a_limit_is_read_and_written_so_that_it_can_be_read_again(kind, text, amount, share):
    budget = Budget.of({kind: text})
    limit = budget.limits[kind]
    assert limit.amount == pytest.approx(amount, rel=1e-12)
    assert limit.share is share
    again = Budget.of(budget.to_dict()).limits[kind]
    assert (again.amount, again.share) == (limit.amount, limit.share)


@pytest.mark.parametrize(
    "limits, message",
    [
        ({"macs": 0}, r"macs must be a fraction in \(0, 1\] or an amount such as 60M; got 0"),
        ({"macs": -0.5}, "must be a fraction"),
        ({"macs": 1.5}, "is that 1.5% or 1.5k"),
        ({"macs": 50}, "is that 50% or 50k"),
        ({"macs": 1234.5}, "must be a fraction"),
        ({"macs": float("nan")}, "must be a fraction"),
        ({"macs": "half"}, "must be a fraction"),
        ({"macs": "3ms"}, "units: k, K, M"),
        ({"bytes": "2M"}, "units: B, kB"),
        ({"latency": 3}, "is that 3% or 3s"),
        ({"latency": 500}, "amount such as 3ms"),
        ({"macs": "120%"}, "units"),
        ({"macs": "1..5M"}, "must be a fraction"),
        ({"macs": True}, "must be a fraction"),
        ({"macs": [0.5]}, "must be a fraction"),
        ({"mac": 0.5}, "did you mean 'macs'"),
        ({"mac": None}, "did you mean 'macs'"),
        ({}, "at least one of"),
        ({"macs": None}, "at least one of"),
    ],
)
def test_what_is_unclear_is_refused_in_one_line(limits, message):
    with pytest.raises(ValueError, match=message) as error:
        Budget.of(limits)
    assert "\n" not in str(error.value)


def test_all_limits_have_to_hold():
    budget = Budget.of({"macs": 0.5, "params": 1000, "bytes": None})
    assert budget.met(Cost(500_000, 1000, 16_000), ORIGINAL)
    assert not budget.met(Cost(500_001, 1000, 1), ORIGINAL)
    assert not budget.met(Cost(1, 1001, 1), ORIGINAL)


def test_counted_and_measured_kinds_are_told_apart():
    budget = Budget.of(dict.fromkeys(BUDGETS, 0.5))
    assert set(budget.counted.limits) == {"macs", "params", "bytes"}
    assert set(budget.measured.limits) == {"memory", "latency"}
