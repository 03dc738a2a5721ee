"""Budgets of latency and memory: measured on the edited network, with a timer that counts instead of a clock."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from simprune import measures
from simprune.api import apply, plan
from simprune.core.plan import Plan
from simprune.core.registry import parts
from simprune.planners.budget import Budget
from simprune.planners.constraints import Constraints
from simprune.planners.search import Search, everything
from simprune.planners.space import Space
from simprune.trace.memory import peak_memory
from simprune.trace.network import Network
from simprune.trace.timing import batch_of
from simprune.tune.latency_table import _timed, latency_table
from simprune.tune.measured import TURNS, Bench, meet
from simprune.tune.plan import _edits
from tests.networks import build, estimated


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


@pytest.fixture(autouse=True)
def calls_of_two_inputs(monkeypatch):
    """The timers here count the work of a call with the example's two inputs."""
    monkeypatch.setattr("simprune.tune.plan.default_size", lambda macs: 2)


@pytest.fixture(scope="module")
def found():
    result = {}
    for name in ("Residual", "Tokens"):
        model, x = build(name)
        structures = ("channels", "blocks", "heads") if name == "Tokens" else ("channels", "blocks")
        result[name] = (model, x, estimated(model, [x], measures.get("cka_debiased"), structures, "magnitude"))
    return result


@pytest.mark.parametrize("name", parts("planner"))
@pytest.mark.parametrize("timer", [macs, sluggish])
def test_a_latency_budget_is_met_by_the_edited_network(found, name, timer):
    model, x, redundancy = found["Residual"]
    made = plan(redundancy, {"latency": 0.8}, name, model=model, timer=timer)
    before, after = (timer(network, (x[:2],), {}) for network in (model, apply(made, model)))
    assert after <= 0.8 * before
    assert made.expected["latency_ms"] == pytest.approx(1e3 * after, rel=1e-3)
    assert made.original["latency_ms"] == pytest.approx(1e3 * before, rel=1e-3)


class Clock:
    """Time that grows with every layer's macs to some power, plus a fixed cost per layer, and more for whole networks
    than for layers by themselves; drawn by a seed, with readings that are off by `noise`."""

    def __init__(self, seed, noise=0.0):
        draw = np.random.default_rng(seed)
        self.power, self.fixed, self.between = draw.uniform(0.5, 1.2), draw.uniform(0, 4), draw.uniform(0, 0.5)
        self.noise, self.draw, self.known, self.readings = noise, draw, {}, 0

    def exact(self, module, args, kwargs):
        outputs = []
        layers = [each for each in module.modules() if isinstance(each, nn.Conv2d | nn.Linear)]
        hooks = [layer.register_forward_hook(lambda *seen: outputs.append(seen[2])) for layer in layers]
        with torch.no_grad():
            module(*args, **kwargs)
        for hook in hooks:
            hook.remove()
        macs = [out.numel() * layer.weight[0].numel() for out, layer in zip(outputs, layers, strict=True)]
        return sum((each / 1e4) ** self.power + self.fixed for each in macs) * (1 + self.between * (len(macs) > 1))

    def __call__(self, module, args, kwargs):
        self.readings += 1
        if module not in self.known:
            self.known[module] = self.exact(module, args, kwargs)
        return self.known[module] * np.exp(self.noise * self.draw.standard_normal())


@pytest.fixture(scope="module")
def fine():
    torch.manual_seed(0)
    widths = (3, 60, 50, 40)
    convolutions = [nn.Sequential(nn.Conv2d(*each, 3), nn.ReLU()) for each in pairwise(widths)]
    model = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(160, 4)).eval()
    x = torch.randn(4, 3, 8, 8)
    return model, x, estimated(model, [x], measures.get("cka_debiased"), ("channels",), "magnitude")


@pytest.mark.parametrize("noise, slack", [(0.0, 1e-9), (0.03, 0.015)])
@pytest.mark.parametrize("seed", range(4))
def test_fine_steps_meet_any_clocks_budget_within_five_percent(fine, seed, noise, slack):
    model, x, redundancy = fine
    clock, keep = Clock(seed, noise), np.random.default_rng(seed).uniform(0.5, 0.9)
    name = ("greedy", "optimal", "uniform", "random")[seed % 4]
    made = plan(redundancy, {"latency": keep}, name, model=model, timer=clock)
    before, after = (clock.exact(network, (x[:2],), {}) for network in (model, apply(made, model)))
    ratio = after / before
    assert 0.95 - slack <= ratio / keep <= 1 + slack
    assert clock.readings < 600


def test_what_a_jump_leaves_of_the_budget_goes_back_to_the_channels(fine):
    model, x, redundancy = fine
    space, clock = Space.of(redundancy, Constraints()), Clock(3)

    def jumpy(search):
        levels = everything(search.space).levels
        mild, hard = (replace(space.nothing, levels=levels * part // 8) for part in (1, 6))
        met = search.met(search.space.cost(mild)[None])[0]
        return search.space, mild if met else hard

    def draft(space, selection):
        return Plan(_edits(space, selection, {}), redundancy.fingerprint, redundancy.inputs)

    bench = Bench(Network(model, ((x,), {})), ((x,), {}), clock, draft)
    full, selection, costs = meet(Search(space, {}), Budget.of({"latency": 0.6}), jumpy, bench)
    assert 0.95 <= costs["latency"] / (0.6 * bench.original("latency")) <= 1
    gone = np.array([menu.counts[level] for menu, level in zip(full.menus, selection.levels, strict=True)])
    hard = np.array([menu.entry.group.size for menu in full.menus]) * 6 / 8
    assert (gone <= hard).all() and (gone < 0.9 * hard).any()


def tiles(module, args, kwargs):
    """A timer by which kernels work on sixteen channels at a time, and all but whole tiles cost twice."""
    seconds = []

    def add(layer, given, made):
        widths = [value.shape[1] for value in (given[0], made)]
        each = made[0, 0].numel() * 1e-9 * (1 + any(width % 16 for width in widths[1:]))
        seconds.append(each * np.prod([-(-width // 16) for width in widths]))

    layers = [each for each in module.modules() if isinstance(each, nn.Conv2d)]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    with torch.no_grad():
        module(*args, **kwargs)
    for hook in hooks:
        hook.remove()
    return sum(seconds)


@pytest.mark.parametrize("name", ["greedy", "optimal", "uniform", "clusters", "random"])
def test_where_time_falls_in_steps_channels_go_by_whole_steps(name):
    torch.manual_seed(0)
    widths = (3, 64, 48, 64, 80, 64)
    convolutions = [nn.Sequential(nn.Conv2d(*each, 1), nn.ReLU()) for each in pairwise(widths)]
    model = nn.Sequential(*convolutions, nn.Conv2d(64, 4, 1)).eval()
    x = torch.randn(4, 3, 4, 4)
    redundancy = estimated(model, [x], measures.get("cka_debiased"), ("channels",), "magnitude")
    made = plan(redundancy, {"latency": 0.5}, name, model=model, timer=tiles)
    assert 0.4 < made.expected["latency_ms"] / made.original["latency_ms"] <= 0.5
    assert {(edit.of - len(edit.indices)) % 16 for edit in made.edits} == {0}


def test_near_a_limit_more_turns_are_timed_than_far_from_it():
    def turns(limit):
        clock = Clock(0, 0.03)
        example = ((torch.zeros(1, 8),), {})
        bench = Bench(Network(nn.Linear(8, 8), example), example, clock, draft=None, whole={"latency": 1.0})  # pyright: ignore[reportArgumentType]
        found = bench.seconds(nn.Linear(8, 8), limit)
        assert found == pytest.approx(1, abs=0.05)
        return clock.readings // 2

    assert turns(0.5) == turns(2.0) == TURNS[0]
    assert turns(1.0) > 3 * TURNS[0]


def test_equal_layers_are_timed_once(fine):
    """A chain of equal layers costs no more readings than one of them and what lies between."""
    counts = []
    for depth in (3, 6):
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(12, 12) for _ in range(depth))).eval()
        x = torch.randn(8, 12)
        redundancy = estimated(model, [x], measures.get("cka_debiased"), ("channels",), "magnitude")
        space, clock = Space.of(redundancy, Constraints()), Clock(0)
        latency_table(space, model, ((x,), {}), _editor(space, redundancy, model), clock)
        counts.append(clock.readings)
    assert counts[1] <= counts[0] + 12


@pytest.mark.parametrize("round_to, wanted", [(1, set(range(4, 60, 4)) | {1}), (10, {10, 20, 30, 40, 50})])
def test_widths_that_are_timed_are_few_and_round(fine, round_to, wanted):
    constraints = Constraints(round_to=round_to)
    menu = Space.of(fine[2], constraints).menus[0]
    assert {60 - menu.counts[level] for level in _timed(menu)} == wanted


def test_where_nothing_has_to_go_no_structure_is_timed(fine):
    model, _, redundancy = fine
    clock = Clock(0)
    made = plan(redundancy, {"latency": 1.0, "macs": 1.0}, model=model, timer=clock)
    assert made.edits == ()
    assert clock.readings == 1
    assert made.expected["latency_ms"] == made.original["latency_ms"]
    assert plan(redundancy, {"latency": 1.0, "macs": 0.9}, model=model, timer=clock).edits


def _editor(space, redundancy, model):
    return lambda selection: apply(Plan(_edits(space, selection, {}), redundancy.fingerprint, redundancy.inputs), model)


def test_where_time_is_macs_the_table_is_the_cost_model(found):
    model, x, redundancy = found["Residual"]
    space = Space.of(redundancy, Constraints())
    example = ((x[:2],), {})

    table = latency_table(space, model, example, _editor(space, redundancy, model), macs).table
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
        ({"latency": 0.5}, {"batch_size": 0}, "planner.batch_size: expected a whole number"),
    ],
)
def test_what_cannot_be_measured_or_reached_is_said_in_one_line(found, budget, options, message):
    model, _, redundancy = found["Residual"]
    with pytest.raises(ValueError, match=message) as error:
        plan(redundancy, budget, **({"model": model, "timer": macs} | options))
    assert "\n" not in str(error.value)
