"""Laws of experts: removed equals never selected, at the predicted cost, saved and opened again."""

import pytest
import torch
from torch import nn

import simprune as sp
from simprune.core.batches import call
from simprune.core.example import describe, example_of
from simprune.core.plan import Edit, Plan, fingerprint
from simprune.edit.configuration import reopens
from simprune.structures import structure
from simprune.trace.cost import cost_model, measure_cost
from simprune.trace.experts import mixtures
from simprune.trace.network import Network
from tests.architectures.mixtures import NAMES, batch, make

RENORMALISED = ("mixtral", "deepseek", "gptoss", "listed")  # the selected gates sum to 1


def plan_of(model, *gone):
    """The plan that removes experts of the mixtures, in their order."""
    edits = [
        Edit("experts", name, experts, layout.size)
        for (name, layout), experts in zip(mixtures(model).items(), gone, strict=False)
        if experts
    ]
    return Plan(tuple(edits), fingerprint(model), describe(example_of(batch())))


def unselected(monkeypatch, model, *gone):
    """The output of a model whose routers give some experts the logit -inf."""
    routers = {
        model.get_parameter(layout.router).data_ptr(): list(experts)
        for layout, experts in zip(mixtures(model).values(), gone, strict=False)
    }
    linear = torch.nn.functional.linear

    def masked(x, weight, bias=None):
        return linear(x, weight, bias).index_fill(-1, torch.tensor(routers.get(weight.data_ptr(), [])).long(), -1e30)

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(torch.nn.functional, "linear", masked)
        return call(model, batch())


@pytest.mark.parametrize("name", NAMES)
def test_removed_equals_never_selected_at_the_predicted_cost(name, monkeypatch):
    model, example = make(name), example_of(batch())
    groups, refused = structure("experts").find(Network(model, example))
    assert [(group.size, group.least) for group in groups] == [(6, 2), (6, 2)] and refused == []
    small = sp.apply(plan_of(model, (0, 3, 4), (2,)), model)
    with torch.no_grad():
        expected = unselected(monkeypatch, model, (0, 3, 4), (2,))
        torch.testing.assert_close(call(small, batch()), expected, rtol=1e-5, atol=1e-5)
    costs = cost_model(model, example)
    assert measure_cost(small, example) == costs.after(groups[0].cut([0, 3, 4]) | groups[1].cut([2]))
    assert [layout.size for layout in mixtures(small).values()] == [3, 5]


@pytest.mark.parametrize("name", RENORMALISED)
def test_an_expert_that_no_token_selects_goes_exactly_and_first(name):
    model = make(name)
    two = {"input_ids": batch()["input_ids"][:2, :1]}  # two tokens select at most four of six experts
    redundancy = sp.analyze(model, [two], structures=("experts",))
    gone = []
    for entry in redundancy.channels:
        idle = [unit for unit in range(6) if entry.redundancy[unit] == 1]
        assert len(idle) >= 2 and {*entry.order[: len(idle)]} == {*idle}
        assert all(entry.damage[unit] <= 1e-12 for unit in idle)
        gone.append(tuple(idle[:2]))
    small = sp.apply(plan_of(model, *gone), model)
    with torch.no_grad():
        torch.testing.assert_close(call(small, two), call(model, two), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["mixtral", "qwen2moe", "deepseek", "gptoss"])
def test_a_model_opens_again_where_all_layers_have_as_many_experts(name):
    model = make(name)
    small = sp.apply(plan_of(model, (0, 3), (2, 5)), model)
    assert reopens(small, batch()).opens
    counts = (getattr(small.config, key, None) for key in ("num_experts", "num_local_experts", "n_routed_experts"))
    assert {count for count in counts if count is not None} == {4}
    if name == "mixtral":
        other = reopens(sp.apply(plan_of(model, (0, 3), (2,)), model), batch())
        assert not other.opens and "states its sizes" in other.reason


def test_a_bundle_brings_the_experts_back(tmp_path):
    model, calibration = make("listed"), [batch(4, 12), batch(4, 9)]
    result = sp.compress(model, calibration=calibration, structures=("experts",), budget={"params": 0.8})
    assert result.plan.of_kind("experts")
    sp.save(tmp_path / "bundle", result)
    small = sp.load(tmp_path / "bundle", model=make("listed"))
    with torch.no_grad():
        assert torch.equal(call(small, batch()), call(result.model, batch()))
    assert any("which inputs they get depends on the router" in note for note in result.report["notes"])


def test_what_a_token_selects_costs_however_many_there_are_to_select_from():
    model, example = make("mixtral"), example_of(batch())
    costs = cost_model(model, example)
    per_expert = sum(
        costs.tensors[name].shape[1] * costs.tensors[name].shape[2]
        for name in mixtures(model)["model.layers.0.mlp"].fused
    )
    assert costs.fixed["model.layers.0.mlp.experts"] == 10 * 2 * per_expert
    small = sp.apply(plan_of(model, (0, 1, 2, 3)), model)
    fixed = cost_model(small, example).fixed
    assert all(fixed[f"{name}.experts"] == costs.fixed[f"{name}.experts"] for name in mixtures(model))
    assert measure_cost(small, example).params < costs.total().params


def test_as_many_experts_stay_as_a_token_selects():
    model = make("mixtral")
    redundancy = sp.analyze(model, [batch()], structures=("experts",))
    plan = sp.plan(redundancy, planner="threshold", threshold=0.0)
    assert [len(edit.indices) for edit in plan.edits] == [4, 4]
    with pytest.raises(ValueError, match="every token needs 2"):
        sp.apply(plan_of(model, (0, 1, 2, 3, 4)), model)
    model = make("mixtral", num_local_experts=2)
    assert "needs all of its 2 experts" in structure("experts").find(Network.trace(model, batch()))[1][0][1]


def test_experts_in_groups_go_one_of_every_group(monkeypatch):
    model = make("deepseek", n_routed_experts=8, n_group=2, topk_group=1)
    groups, refused = structure("experts").find(Network.trace(model, batch()))
    assert refused == [] and groups[0].units == ((0, 4), (1, 5), (2, 6), (3, 7)) and groups[0].least == 2
    small = sp.apply(plan_of(model, (1, 5)), model)
    with torch.no_grad():
        torch.testing.assert_close(call(small, batch()), unselected(monkeypatch, model, (1, 5)), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="can only go together"):
        sp.apply(plan_of(model, (1, 4)), model)


def test_two_experts_that_compute_the_same_are_each_other_s_nearest():
    model = make("mixtral")
    for tensor in mixtures(model)["model.layers.0.mlp"].fused:
        model.get_parameter(tensor).data[4] = model.get_parameter(tensor).data[1]
    entry = sp.analyze(model, [batch(8, 12)], structures=("experts",)).channels[0]
    assert (entry.nearest[1], entry.nearest[4]) == (4, 1)


def test_half_precision_has_the_same_experts_and_repair_lowers_the_error():
    model, calibration, unseen = make("qwen2moe"), [batch(8, 11 + number) for number in range(4)], batch(8, 24)
    exact = structure("experts").find(Network.trace(model, batch()))
    assert structure("experts").find(Network.trace(make("qwen2moe").bfloat16(), batch())) == exact
    plan = plan_of(model, (0, 1, 2), (3, 4))
    small = sp.apply(plan, model)
    errors = []
    for _ in range(2):
        with torch.no_grad():
            errors.append(float((call(small, unseen) - call(model, unseen)).square().sum()))
        sp.reconstruct(small, plan, model, calibration)
    assert errors[1] < 0.9 * errors[0]


def test_a_network_without_mixtures_says_so():
    redundancy = sp.analyze(
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), [torch.randn(8, 4)], structures=("experts",)
    )
    assert redundancy.channels == ()
    assert "no module is a mixture" in dict(redundancy.unprunable)["experts"]


@pytest.mark.parametrize("name", ["mixtral", "listed", "deepseek"])
def test_an_expert_is_merged_into_its_like_with_its_row_of_the_router(name):
    model = make(name)
    layout = next(iter(mixtures(model).values()))
    for tensor in layout.fused:
        model.get_parameter(tensor).data[4] = model.get_parameter(tensor).data[1]
    if layout.members:
        model.get_submodule(layout.members[4]).load_state_dict(model.get_submodule(layout.members[1]).state_dict())
    small, dropped = (sp.apply(plan_of(model, (4,)), model) for _ in range(2))
    refits = sp.reconstruct(small, plan_of(model, (4,)), model, [batch(8, 12)], "merge_experts")
    assert [refit.layer for refit in refits] == [layout.name] and refits[0].after <= refits[0].before
    router, rows = small.get_parameter(layout.router).data, model.get_parameter(layout.router).data
    assert torch.equal(router[[0, 2, 3, 4]], rows[[0, 2, 3, 5]])
    for tensor in layout.fused:  # the mean of equals
        torch.testing.assert_close(small.get_parameter(tensor).data, dropped.get_parameter(tensor).data)
    if refits[0].after < refits[0].before:  # a point between both rows
        share = ((router[1] - rows[1]) / (rows[4] - rows[1])).double()
        assert 0 < share.mean() < 1 and share.std() < 1e-3
    else:
        assert torch.equal(router[1], rows[1])
