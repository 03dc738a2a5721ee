"""Budgets of latency and memory: measured on the edited network, with a timer that counts instead of a clock."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from simprune import measures
from simprune.latency import batch_of, latency_table
from simprune.memory import peak_memory
from simprune.planning.choosers import CHOOSERS
from simprune.planning.constraints import Constraints
from simprune.planning.make import plan
from simprune.planning.space import Space
from simprune.redundancy import estimate
from simprune.surgery import apply
from tests.networks import build


def macs(module, args, kwargs):
    """A timer by which a multiply-add takes a nanosecond."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        module(*args, **kwargs)
    return counter.get_total_flops() / 2 * 1e-9


def sluggish(module, args, kwargs):
    """As `macs`, with a fixed cost per layer and a network that takes longer than its layers do."""
    layers = sum(isinstance(each, nn.Conv2d | nn.Linear) for each in module.modules())
    return (macs(module, args, kwargs) ** 0.7 + 2e-5 * layers) * (1.3 if layers > 4 else 1)


@pytest.fixture(scope="module")
def found():
    result = {}
    for name in ("Residual", "Tokens"):
        model, x = build(name)
        structures = ("channels", "blocks", "heads") if name == "Tokens" else ("channels", "blocks")
        result[name] = (model, x, estimate(model, [x], measures.get("cka_debiased"), structures, "magnitude"))
    return result


@pytest.mark.parametrize("name", CHOOSERS)
@pytest.mark.parametrize("timer", [macs, sluggish])
def test_a_latency_budget_is_met_by_the_edited_network(found, name, timer):
    model, x, redundancy = found["Residual"]
    made = plan(redundancy, {"latency": 0.8}, name, model=model, timer=timer)
    before, after = (timer(network, (x[:2],), {}) for network in (model, apply(made, model)))
    assert after <= 0.8 * before
    assert made.expected["latency_ms"] == pytest.approx(1e3 * after, rel=1e-3)
    assert made.original["latency_ms"] == pytest.approx(1e3 * before, rel=1e-3)


def test_fine_steps_meet_it_within_five_percent():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 40, 3), nn.ReLU(), nn.Conv2d(40, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 16, 4)
    ).eval()
    x = torch.randn(8, 3, 8, 8)
    redundancy = estimate(model, [x], measures.get("cka_debiased"), ("channels",), "magnitude")
    for timer in (macs, sluggish):
        for keep in (0.8, 0.6):
            made = plan(redundancy, {"latency": keep}, model=model, timer=timer)
            ratio = timer(apply(made, model), (x,), {}) / timer(model, (x,), {})
            assert 0.95 * keep - 0.01 <= ratio <= keep + 0.01  # of eight inputs instead of two


def test_where_time_is_macs_the_table_is_the_cost_model(found):
    model, x, redundancy = found["Residual"]
    space = Space.of(redundancy, Constraints())
    example = ((x[:2],), {})

    def edit(choice):
        from simprune.planning.make import _edits
        from simprune.planning.plan import Plan

        return apply(Plan(_edits(space, choice), redundancy.fingerprint, redundancy.inputs), model)

    table = latency_table(space, model, example, edit, macs)
    total = redundancy.costs.total().macs
    assert table.whole == pytest.approx(2e-9 * total)
    for place, menu in enumerate(space.menus):
        for level in (0, len(menu.counts) - 1):
            after = redundancy.costs.after(menu.entry.group.cut(menu.gone(level))).macs
            assert table.groups[place][level] == pytest.approx(2e-9 * (total - after), abs=1e-15)
        assert (np.diff(table.groups[place]) >= 0).all()
    for place, entry in enumerate(space.blocks):
        assert table.blocks[place] == pytest.approx(2e-9 * (total - redundancy.costs.after(dropped=[entry.name]).macs))


@pytest.mark.parametrize("network", ["Residual", "Tokens"])
@pytest.mark.parametrize("name", ["greedy", "optimal", "uniform"])
def test_a_memory_budget_is_met_by_the_edited_network(found, network, name):
    model, x, redundancy = found[network]
    made = plan(redundancy, {"memory": 0.8}, name, model=model)
    before, after = (peak_memory(each, ((x[:2],), {})) for each in (model, apply(made, model)))
    assert after <= 0.8 * before
    assert made.expected["memory"] == after
    assert made.original["memory"] == before


def test_several_budgets_hold_at_once(found):
    model, x, redundancy = found["Residual"]
    budget = {"latency": 0.7, "memory": 0.9, "params": 0.5}
    made = plan(redundancy, budget, "optimal", model=model, timer=macs)
    small = apply(made, model)
    assert macs(small, (x[:2],), {}) <= 0.7 * macs(model, (x[:2],), {})
    assert peak_memory(small, ((x[:2],), {})) <= 0.9 * peak_memory(model, ((x[:2],), {}))
    assert made.expected["params"] <= 0.5 * made.original["params"]


def test_a_batch_size_is_timed_and_noted(found):
    model, _, redundancy = found["Residual"]
    made = plan(redundancy, {"latency": "1s"}, model=model, timer=macs, batch_size=5)
    assert made.edits == ()
    assert made.planner["batch_size"] == 5
    assert made.original["latency_ms"] == pytest.approx(5e-6 * redundancy.costs.total().macs, rel=1e-3)
    assert batch_of(((torch.arange(3),), {"mask": None}), 5)[0][0].tolist() == [0, 1, 2, 0, 1]


@pytest.mark.parametrize(
    "budget, options, message",
    [
        ({"latency": 0.5}, {"model": None}, "latency can only be measured: give model="),
        ({"memory": 0.5, "latency": 0.5}, {"model": None}, "memory and latency can only"),
        ({"latency": 1e-4}, {}, "was not reached by any network that was measured; the nearest has latency"),
        ({"memory": "1B"}, {}, "not reached .* has memory [0-9,]+ bytes of"),
        ({"latency": 0.5}, {"batch_size": 0}, "batch_size must be a whole number"),
    ],
)
def test_what_cannot_be_measured_or_reached_is_said_in_one_line(found, budget, options, message):
    model, _, redundancy = found["Residual"]
    with pytest.raises(ValueError, match=message) as error:
        plan(redundancy, budget, **({"model": model, "timer": macs} | options))
    assert "\n" not in str(error.value)
