"""Language models: the ridge that layers follow, and the choice of layers by the answers after a repair."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import simprune as sp
from simprune.core.example import describe, example_of
from simprune.core.plan import Edit, Plan, fingerprint
from simprune.repair import layer_fit
from simprune.tune.greedy_leave_one_out import _ShrinkingNetwork
from tests.edit import families

GONE = "model.layers.1"
LAST = ("self_attn.o_proj", "mlp.down_proj")  # of the halves of a layer


def batches(count: int = 64):
    ids = torch.randint(3, families.WORDS, (count, 32), generator=torch.Generator().manual_seed(5))
    return [{"input_ids": part} for part in ids.split(24)]


def plan_of(model, calibration, *edits):
    return Plan(edits, fingerprint(model), describe(example_of(calibration[0])))


def divergence(model, small, calibration):
    with torch.no_grad():
        before, after = (torch.cat([F.log_softmax(net(**b).logits, -1) for b in calibration]) for net in (model, small))
    return float((before.exp() * (before - after)).sum(-1).mean())


@pytest.mark.parametrize("method", ["least_squares", "blockwise", {"name": "least_squares", "ridge": 0.5}])
def test_layers_take_the_ridge_of_the_last_one_where_an_edit_is_made_up_for(method, monkeypatch):
    """Layers before a gap, and those that have lost inputs, choose; those behind them follow, unless told."""
    model, calibration = families.make("llama", num_hidden_layers=7, tie_word_embeddings=True), batches(16)
    units = Edit("channels", "model.layers.5.mlp.gate_proj", (0, 3, 5), 48)
    plan = plan_of(model, calibration, Edit("block", GONE), Edit("block", "model.layers.3"), units)
    small, original, asked = sp.apply(plan, model), layer_fit.fit, []
    answers = {1: 10.0, 3: 0.1, 7: None}  # by the number of the fit: two are before gaps, the last has lost inputs

    def fit(layer, pairs, ridge, *rest):
        asked.append(ridge)
        solved = original(layer, pairs, ridge, *rest)
        return replace(solved, ridge=answers.get(len(asked), solved.ridge))

    monkeypatch.setattr(layer_fit, "fit", fit)
    refits = sp.reconstruct(small, plan, model, calibration, method)
    layers = [f"model.layers.{n}.{part}" for n in (2, 4, 5, 6) for part in LAST]
    names = [entry.layer for entry in refits if entry.layer.endswith(LAST)]
    assert names[-9:] == ["model.layers.0.mlp.down_proj", *layers]
    follow = [10.0, "auto", 0.1, 0.1, 0.1, "auto", 0.1, 0.1]  # where a leader stays as it is, the one before it leads
    assert asked[:9] == ([0.5] * 9 if isinstance(method, dict) else ["auto", *follow])


def test_greedy_choice_refits_what_writes_the_stream_before_the_gap():
    model, (whole,) = families.make("llama", tie_word_embeddings=True), [torch.cat([b["input_ids"] for b in batches()])]
    score = {"name": "greedy_leave_one_out", "error": "divergence", "images": 24, "measured": 8, "steps": 1}
    redundancy = sp.analyze(
        model, [{"input_ids": part} for part in whole.split(10)], structures=["blocks"], block_score=score, damage=False
    )
    value = next(entry.redundancy for entry in redundancy.blocks if entry.block.name == GONE)
    fitting, judging = whole[:48:2], whole[1:16:2]
    seen, layer = [], model.model.layers[0].mlp.down_proj
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1).double()))
    with torch.no_grad():
        states = model(fitting, output_hidden_states=True).hidden_states
    handle.remove()
    goal, lost = states[2].flatten(0, 1).double(), (states[2] - states[1]).flatten(0, 1).double()
    size = goal.square().mean(1, keepdim=True).sqrt()
    x, lost = seen[0] / size, lost / size
    gram = x.T @ x
    change = torch.linalg.solve(gram + gram.diagonal().mean() * torch.eye(len(gram)), x.T @ lost).T
    small = sp.apply(plan_of(model, [{"input_ids": whole}], Edit("block", GONE)), model)
    small.model.layers[0].mlp.down_proj.weight.data += change.float()
    assert value == pytest.approx(1 / (1 + divergence(model, small, [{"input_ids": judging}])), rel=1e-4)


@pytest.mark.parametrize("repair", [False, True])
def test_what_greedy_choice_removes_ranks_before_all_that_is_left(repair):
    model, (whole,) = families.make("llama", num_hidden_layers=6), [torch.cat([b["input_ids"] for b in batches()])]
    for number in (1, 3):
        for part in ("self_attn.o_proj", "mlp.down_proj"):
            model.get_parameter(f"model.layers.{number}.{part}.weight").data *= 0.01
    score = {"name": "greedy_leave_one_out", "error": "divergence", "images": 8, "repair": repair}
    orders = []
    for steps in (2, 6):
        given = sp.analyze(
            model, [whole[:24]], structures=["blocks"], block_score=score | {"steps": steps}, damage=False
        )
        ranked = sorted(given.blocks, key=lambda entry: -entry.redundancy)
        assert len({entry.redundancy for entry in ranked[:3]}) == 3
        orders.append([entry.block.name for entry in ranked[:2]])
    assert orders[0] == orders[1] and {*orders[0]} == {"model.layers.1", "model.layers.3"}


@pytest.mark.parametrize("repair", [False, True])
def test_what_is_known_of_the_network_before_a_gap_changes_no_choice(repair, monkeypatch):
    """Trials begin at recorded calls; where no block may be left out of a pass, all of them run in every one."""
    model = families.make("llama", num_hidden_layers=5)
    sizes = {0: 1.0, 1: 0.1, 2: 0.6, 3: 0.05, 4: 0.5}
    for number, size in sizes.items():
        for part in LAST:
            model.get_parameter(f"model.layers.{number}.{part}.weight").data *= size
    score = {"name": "greedy_leave_one_out", "error": "divergence", "images": 4, "repair": repair}

    def redundancies():
        found = sp.analyze(model, batches(8), structures=["blocks"], block_score=score, damage=False)
        return {entry.name: entry.redundancy for entry in found.blocks}

    skipping = redundancies()
    monkeypatch.setattr(_ShrinkingNetwork, "_proven", lambda *_: False)
    assert redundancies() == pytest.approx(skipping, rel=1e-5)


def test_a_plan_takes_layers_in_the_order_of_the_greedy_choice():
    """Also where the last trial of a layer, long ago, says less than was lost since; planners see no rounding."""
    sizes, ids = (2, 0.2, 0.15, 0.2, 0.19, 0.18, 0.1), torch.cat([batch["input_ids"] for batch in batches()])
    model = families.make("llama", num_hidden_layers=len(sizes))
    for number, size in enumerate(sizes):
        for part in LAST:
            model.get_parameter(f"model.layers.{number}.{part}.weight").data *= size
    score = {"name": "greedy_leave_one_out", "error": "divergence", "images": 8, "repair": False, "steps": 3}
    found = sp.analyze(model, [ids[:24]], structures=["blocks"], block_score=score, damage=False)
    ranked, costs = sorted(found.blocks, key=lambda entry: -entry.redundancy), found.costs
    for count in range(1, len(sizes)):
        gone = {entry.name for entry in ranked[:count]}
        made = sp.plan(found, {"params": costs.after(dropped=gone).params / costs.total().params + 1e-9})
        assert {*made.blocks} == gone
