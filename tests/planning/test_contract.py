"""What every chooser promises, and what the plan made from it promises."""

import pytest

from simprune import measures
from simprune.cost import measure_cost
from simprune.planning.choosers import CHOOSERS
from simprune.planning.make import plan
from simprune.redundancy import estimate
from simprune.surgery import apply
from tests.networks import build

NETWORKS = ("Residual", "Flat", "Concat", "Tokens")


@pytest.fixture(scope="module")
def found():
    result = {}
    for name in NETWORKS:
        model, x = build(name)
        result[name] = (model, x, estimate(model, [x], measures.get("cka_debiased")))
    return result


@pytest.mark.parametrize("name", CHOOSERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_steps_remove_each_thing_once_and_never_empty_a_layer(found, name, network):
    redundancy = found[network][2]
    steps = CHOOSERS[name](redundancy, seed=3)
    assert len({(step.name, step.channel) for step in steps}) == len(steps)
    for entry in redundancy.channels:
        assert sum(step.name == entry.name for step in steps) == entry.group.size - 1
    assert all(step.damage >= 0 for step in steps)


@pytest.mark.parametrize("name", CHOOSERS)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("budget", [{"macs": 0.6}, {"params": 0.7}, {"macs": 0.8, "bytes": 0.6}])
def test_plans_meet_the_budget_exactly_as_the_edited_network_does(found, name, network, budget):
    model, x, redundancy = found[network]
    made = plan(redundancy, budget, name)
    cost = measure_cost(apply(made, model), ((x[:2],), {}))
    assert cost.to_dict() == made.expected
    share = cost.share_of(redundancy.costs.total())
    assert all(share[kind] <= limit for kind, limit in budget.items())


@pytest.mark.parametrize("name", CHOOSERS)
def test_the_same_inputs_give_the_same_bytes_and_a_smaller_budget_a_longer_plan(found, name):
    redundancy = found["Residual"][2]
    assert plan(redundancy, {"macs": 0.5}, name).to_yaml() == plan(redundancy, {"macs": 0.5}, name).to_yaml()
    costs = [plan(redundancy, {"macs": budget}, name).expected["macs"] for budget in (0.9, 0.6, 0.3)]
    assert costs == sorted(costs, reverse=True)


@pytest.mark.parametrize("name", CHOOSERS)
def test_a_budget_of_one_removes_nothing(found, name):
    assert plan(found["Residual"][2], {"macs": 1}, name).edits == ()


def test_seeds_matter_to_random_only(found):
    redundancy = found["Residual"][2]
    random = [plan(redundancy, {"macs": 0.5}, "random", seed).edits for seed in (0, 1)]
    greedy = [plan(redundancy, {"macs": 0.5}, "greedy", seed).edits for seed in (0, 1)]
    assert random[0] != random[1]
    assert greedy[0] == greedy[1]


def test_every_edit_has_a_reason(found):
    edits = plan(found["Residual"][2], {"macs": 0.03}).edits
    assert {edit.remove for edit in edits} == {"block", "channels"}
    assert all("%" in edit.reason for edit in edits)


@pytest.mark.parametrize(
    "budget, message",
    [
        ({"macs": 0}, r"fraction in \(0, 1\]"),
        ({"macs": 1.5}, r"fraction in \(0, 1\]"),
        ({"macs": "half"}, r"fraction in \(0, 1\]"),
        ({"macs": True}, r"fraction in \(0, 1\]"),
        ({"mac": 0.5}, "did you mean 'macs'"),
        ({}, "at least one of"),
        ({"macs": None}, "at least one of"),
        ({"macs": 1e-4}, r"cannot be reached; removing everything removable leaves macs 0\.\d+"),
    ],
)
def test_wrong_and_impossible_budgets(found, budget, message):
    with pytest.raises(ValueError, match=message):
        plan(found["Residual"][2], budget)


def test_an_unknown_planner_names_the_nearest(found):
    with pytest.raises(KeyError, match="did you mean 'greedy'"):
        plan(found["Residual"][2], {"macs": 0.5}, "gredy")
