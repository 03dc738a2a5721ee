"""What every planner promises, and what the plan made from it promises."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from simprune import measures
from simprune.api import apply
from simprune.core.plan import Plan
from simprune.core.redundancy import Points
from simprune.core.registry import parts
from simprune.planners.constraints import Constraints
from simprune.planners.search import Search
from simprune.planners.space import Space
from simprune.trace.cost import measure_cost
from simprune.tune.plan import plan
from tests.networks import build, estimated
from tests.planners.synthetic import chain

NETWORKS = ("Residual", "Flat", "Concat", "Tokens")
KEEPS = (1.0, 0.97, 0.9, 0.84, 0.77, 0.7, 0.66)


@pytest.fixture(scope="module")
def found():
    result = {}
    for name in NETWORKS:
        model, x = build(name)
        structures = ("channels", "blocks", "heads") if name == "Tokens" else ("channels", "blocks")
        result[name] = (model, x, estimated(model, [x], measures.get("cka_debiased"), structures))
    return result


@pytest.mark.parametrize("name", parts("planner"))
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("budget", [{"macs": 0.8}, {"params": 0.85}, {"macs": 0.9, "bytes": "90%"}], ids=str)
def test_plans_meet_the_budget_exactly_as_the_edited_network_does(found, name, network, budget):
    model, x, redundancy = found[network]
    made = plan(redundancy, budget, name)
    cost = measure_cost(apply(made, model), ((x[:2],), {}))
    assert cost.to_dict().items() <= made.expected.items()
    share = cost.share_of(redundancy.costs.total())
    assert all(share[kind] <= (0.9 if limit == "90%" else limit) for kind, limit in budget.items())
    assert Plan.from_yaml(made.to_yaml()) == made


@pytest.mark.parametrize("name", parts("planner"))
@pytest.mark.parametrize("network", ["Residual", "Tokens"])
def test_edited_plans_work_in_any_order_of_edits(found, name, network):
    model, x, redundancy = found[network]
    made = plan(redundancy, {"macs": 0.8}, name)
    forth, back = apply(made, model), apply(replace(made, edits=made.edits[::-1]), model)
    with torch.no_grad():
        assert torch.equal(forth(x), back(x))
    fewer = replace(made, edits=made.edits[1:])
    assert measure_cost(apply(fewer, model), ((x[:2],), {})).macs > made.expected["macs"]


@pytest.mark.parametrize("name", parts("planner"))
@pytest.mark.parametrize(
    "kwargs", [{}, {"blocks": True}, {"coupled": False}, {"blocks": True, "interacting": True}], ids=str
)
def test_a_larger_budget_never_damages_more_and_is_met_within_one_channel(name, kwargs):
    redundancy = chain(8, 20, seed=1, **kwargs)
    for kind in ("macs", "params"):
        made = [plan(redundancy, {kind: keep}, name) for keep in KEEPS]
        damage = [each.expected["damage"] for each in made]
        assert damage == sorted(damage)
        assert damage[-1] > damage[0] == 0
        costs = redundancy.costs
        dearest = max(
            1 - costs.after(entry.group.cut([0])).share_of(costs.total())[kind] for entry in redundancy.channels
        )
        for keep, each in zip(KEEPS, made, strict=True):
            share = each.expected[kind] / each.original[kind]
            assert share <= keep
            if not each.blocks or (name in ("greedy", "optimal") and "interacting" not in kwargs):
                assert share > keep - dearest


@pytest.mark.parametrize("name", parts("planner"))
def test_a_budget_is_met_within_half_a_percent_by_channels(name):
    redundancy = chain(12, 48, seed=3)
    for keep in (0.9, 0.7):
        share = plan(redundancy, {"macs": keep}, name).expected["macs"] / redundancy.costs.total().macs
        assert keep - 0.005 <= share <= keep


@pytest.mark.parametrize("name", parts("planner"))
def test_the_same_inputs_give_the_same_bytes(found, name):
    redundancy = found["Residual"][2]
    assert plan(redundancy, {"macs": 0.8}, name).to_yaml() == plan(redundancy, {"macs": 0.8}, name).to_yaml()


@pytest.mark.parametrize("name", parts("planner"))
@pytest.mark.parametrize("blocks", [False, True])
def test_no_layer_is_emptied_and_damage_adds_up_over_the_edits(name, blocks):
    redundancy = chain(5, 9, blocks=blocks, seed=5)
    made = plan(redundancy, {"macs": 0.75}, name)
    assert all(len(edit.indices) < edit.of for edit in made.edits if edit.remove == "channels")
    assert sum(edit.damage or 0 for edit in made.edits) == pytest.approx(made.expected["damage"], rel=1e-3)
    if name not in ("random", "clusters"):  # those take channels out of turn
        for entry in redundancy.channels:
            gone = next((edit.indices for edit in made.edits if edit.name == entry.name), ())
            assert set(gone) == set(entry.order[: len(gone)])
    if not blocks:
        assert {edit.remove for edit in made.edits} == {"channels"}


@pytest.mark.parametrize("name", parts("planner"))
def test_fast_costs_are_the_cost_models(found, name):
    for redundancy in [each[2] for each in found.values()] + [chain(4, 7, blocks=True)]:
        original = redundancy.costs.total().macs
        space, selection = parts("planner")[name].make(
            Search(Space.of(redundancy, Constraints()), {"macs": 0.85 * original})
        )
        exact = space.exact(selection)
        assert space.cost(selection).tolist() == [exact.macs, exact.params, exact.bytes]


@pytest.mark.parametrize("name", sorted(set(parts("planner")) - {"random", "uniform"}))
def test_planted_redundancy_goes_first(name):
    torch.manual_seed(0)
    first = nn.Conv2d(3, 8, 3)
    model = nn.Sequential(first, nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 16, 4)).eval()
    copies = {5: 1, 6: 2, 7: 3}
    with torch.no_grad():
        for copy, source in copies.items():
            first.weight[copy], torch.as_tensor(first.bias)[copy] = (
                first.weight[source],
                torch.as_tensor(first.bias)[source],
            )
    redundancy = estimated(model, [torch.randn(64, 3, 8, 8)], measures.get("cka_debiased"), ("channels",))
    (edit,) = plan(redundancy, {"macs": 5 / 8}, name, protect=["2"]).edits
    assert [len({*pair} & set(edit.indices)) for pair in copies.items()] == [1, 1, 1]


@pytest.mark.parametrize("name", parts("planner"))
def test_a_budget_of_one_removes_nothing(found, name):
    assert plan(found["Residual"][2], {"macs": 1}, name).edits == ()


def test_seeds_matter_to_random_only():
    redundancy = chain(4, 8)
    for name in parts("planner"):
        one, other = (plan(redundancy, {"macs": 0.7}, name, seed).edits for seed in (0, 1))
        assert (one != other) == (name == "random")


def test_every_edit_has_a_reason(found):
    edits = plan(found["Residual"][2], {"macs": 0.07}).edits
    assert {edit.remove for edit in edits} == {"block", "channels"}
    assert all("%" in edit.reason for edit in edits)


@pytest.mark.parametrize("name", parts("planner"))
def test_an_unreachable_budget_says_how_far_one_can_go_and_what_stays(found, name):
    with pytest.raises(ValueError, match=r"macs 0.0001 cannot be reached; .*leaves macs 0\.\d+ \([\d,]+\)") as error:
        plan(found["Residual"][2], {"macs": 1e-4}, name, protect=["blocks.0"])
    assert "what stays: blocks.0, " in str(error.value)
    assert "% of the macs (protected" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_threshold_takes_everything_above_it():
    redundancy = chain(4, 10, blocks=True, seed=2)
    made = plan(redundancy, {}, "threshold", threshold=0.5)
    assert set(made.blocks) == {entry.name for entry in redundancy.blocks if entry.redundancy >= 0.5}
    for entry in redundancy.channels:
        gone = next((edit.indices for edit in made.edits if edit.name == entry.name), ())
        if entry.name.partition(".")[0] not in made.blocks:
            assert sum(share >= 0.5 for share in entry.redundancy) == len(gone) or len(gone) == 9
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\]"):
        plan(redundancy, {}, "threshold", threshold=2)
    with pytest.raises(ValueError, match="either a budget or a threshold"):
        plan(redundancy, {"macs": 0.5}, "threshold", threshold=0.5)


def test_clusters_of_blocks_are_runs_that_are_like_their_first():
    """All blocks are near their own inputs, but the second is far from the input of all, and stays for the third."""
    found = chain(3, 4, blocks=True)
    names = [entry.name for entry in found.blocks]
    alike = np.array([[1, 0.99, 0.9, 0.7], [0.99, 1, 0.985, 0.9], [0.9, 0.985, 1, 0.98], [0.7, 0.9, 0.98, 1]])
    points = ("input", *names)
    seen = Points(points, alike, ((points, tuple(names)),))
    blocks = tuple(replace(entry, redundancy=0.985) for entry in found.blocks)
    found = replace(found, blocks=blocks, channels=(), points=seen)
    least = 1 - sum(entry.share for entry in blocks) + 1e-6
    gone = dict.fromkeys(plan(found, {"macs": keep}, "clusters").blocks for keep in np.linspace(1, least, 50))
    a, b, c = names
    joined = [set(), {a}, {a, c}, {a, b, c}]
    assert all(any({*blocks} <= run for run in joined) for blocks in gone)  # what is not needed is given back
    assert [*gone][:2] == [(), (a,)]
    assert b not in next(blocks for blocks in gone if c in blocks)


def test_clusters_keep_one_of_every_pair_that_is_each_others_nearest():
    redundancy = chain(3, 6, seed=0)
    pairs = (1, 0, 3, 2, 5, 4)
    paired = replace(redundancy, channels=tuple(replace(entry, nearest=pairs) for entry in redundancy.channels))
    with pytest.raises(ValueError, match="cannot be reached") as error:
        plan(paired, {"macs": 0.01}, "clusters")
    assert "macs 0.2" in str(error.value) or "macs 0.3" in str(error.value)
    made = plan(paired, {"macs": 0.6}, "clusters")
    for edit in made.edits:
        assert len({index // 2 for index in edit.indices}) == len(edit.indices)


def test_an_unknown_planner_names_the_nearest(found):
    with pytest.raises(KeyError, match="did you mean 'greedy'"):
        plan(found["Residual"][2], {"macs": 0.5}, "gredy")


@pytest.mark.parametrize("stand_in", ["linear", "mean"])
@pytest.mark.parametrize("network", ["Residual", "Tokens"])
@pytest.mark.parametrize("protect", [[], ["residual"]], ids=str)
def test_stand_ins_of_blocks_are_counted(found, network, stand_in, protect):
    model, x, redundancy = found[network]
    first = redundancy.blocks[0]
    fitted = replace(first, block=replace(first.block, replace=stand_in), damage=1e-9)
    redundancy = replace(redundancy, blocks=(fitted,))
    for name in ("greedy", "optimal"):
        made = plan(redundancy, {"params": 0.45}, name, protect=protect)
        assert {edit.replace for edit in made.edits if edit.remove == "block"} == {stand_in}
        assert any(edit.remove == "channels" for edit in made.edits)
        cost = measure_cost(apply(made, model), ((x[:2],), {}))
        assert cost.to_dict().items() <= made.expected.items()
