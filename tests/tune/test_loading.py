"""Laws of plans for a stock loader: equal layers, opened by from_pretrained, and what that costs is said."""

import pytest
import torch

import simprune as sp
from simprune.edit.configuration import reopens
from simprune.planners.alike import roles, united
from tests.architectures import mixtures
from tests.planners.synthetic import chain

pytest.importorskip("transformers")
families = pytest.importorskip("tests.edit.families")
CASES = {  # the structures, and the kinds that a configuration can state
    "llama": (("channels", "heads"), {"channels", "heads"}),
    "bert": (("channels", "heads"), {"channels"}),  # its heads have to divide the width
    "mixtral": (("experts",), {"experts"}),
}


def made(name):
    if name == "mixtral":
        return mixtures.make("mixtral"), mixtures.batch(4, 8)
    batch = families.batch(name)
    return families.make(name, num_hidden_layers=2), {key: value.repeat(2, 1) for key, value in batch.items()}


@pytest.mark.parametrize("name", CASES)
def test_the_pruned_model_opens_and_all_layers_are_alike(name):
    model, batch = made(name)
    structures, stated = CASES[name]
    redundancy = sp.analyze(model, [batch], structures=structures)
    free = sp.plan(redundancy, {"params": 0.8})
    plan = sp.plan(redundancy, {"params": 0.8}, model=model, loader="transformers")
    assert {edit.remove for edit in plan.edits} <= stated
    small = sp.apply(plan, model)
    assert reopens(small, batch).opens
    widths = {}
    for edit in plan.edits:
        role = (edit.remove, edit.name.replace(".0.", ".").replace(".1.", "."))
        widths.setdefault(role, []).append(edit.of - len(edit.indices))
    assert widths and all(len(own) == 2 and len(set(own)) == 1 for own in widths.values())
    assert plan.expected["damage_any_loader"] == free.expected["damage"]
    assert sp.Plan.from_yaml(plan.to_yaml()) == plan
    assert plan.expected["params"] <= 0.8 * plan.original["params"]


def test_the_report_says_what_equal_layers_cost():
    model, batch = made("mixtral")
    planner = {"name": "greedy", "loader": "transformers"}
    result = sp.compress(model, calibration=[batch], structures=("experts",), budget={"params": 0.8}, planner=planner)
    assert result.report["transformers"]["opens"]
    assert any("equal layers, for transformers: expected damage" in note for note in result.report["notes"])


def test_hidden_units_of_equal_layers_are_no_residual_stream():
    model, batch = families.make("vit", num_hidden_layers=2), families.batch("vit")
    redundancy = sp.analyze(model, [batch], structures=("channels",))
    plan = sp.plan(redundancy, {"params": 0.9}, model=model, loader="transformers", protect=["residual"])
    assert len(plan.edits) == 2 and len({len(edit.indices) for edit in plan.edits}) == 1


def test_a_loader_needs_the_model_and_a_model_of_transformers():
    redundancy = chain(4, 12, blocks=False, seed=1)
    with pytest.raises(ValueError, match="give model="):
        sp.plan(redundancy, {"macs": 0.8}, loader="transformers")
    plain = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    found = sp.analyze(plain, [torch.randn(32, 4)])
    with pytest.raises(ValueError, match="expected a model of transformers; got a Sequential"):
        sp.plan(found, {"macs": 0.8}, model=plain, loader="transformers")
    with pytest.raises(ValueError, match="latency is no budget for it"):
        sp.plan(found, {"latency": 0.8}, model=plain, loader="transformers")


@pytest.mark.parametrize("step", [1, 5])
def test_one_group_damages_and_costs_as_the_groups_that_it_stands_for(step):
    redundancy = chain(4, 12, blocks=False, seed=1)
    members = roles(redundancy.channels)
    together, alike = united(redundancy, [(of_role, step) for of_role in members])
    for each in alike.values():
        group = each.entry.group
        free = group.size - group.least
        assert free * step == (12 - 1) // step * step
        gone = range(free)
        whole = sum(
            member.damage[unit] for m, member in enumerate(each.members) for k in gone for unit in each.turns[k][m]
        )
        if together.interactions is None:
            assert sum(each.entry.damage[k] for k in gone) == pytest.approx(whole)
        cut = {}
        for m, member in enumerate(each.members):
            cut |= member.group.cut([unit for k in gone for unit in each.turns[k][m]])
        assert group.cut(gone) == cut
