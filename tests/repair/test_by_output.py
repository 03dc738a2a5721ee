"""The ridge of layers that add to the stream of a language model: the one whose answers are best on other inputs."""

import pytest
import torch
import torch.nn.functional as F

import simprune as sp
from simprune.core.example import describe, example_of
from simprune.core.plan import Edit, Plan, fingerprint
from simprune.repair import by_output
from simprune.repair.reconstruct import reconstruct
from simprune.trace.network import Network
from tests.edit import families

GONE = "model.layers.1"


def batches(count: int = 64):
    ids = torch.randint(3, families.WORDS, (count, 32), generator=torch.Generator().manual_seed(5))
    return [{"input_ids": part} for part in ids.split(24)]


def repaired(model, calibration, method):
    plan = Plan((Edit("block", GONE),), fingerprint(model), describe(example_of(calibration[0])))
    small = sp.apply(plan, model)
    refits = sp.reconstruct(small, plan, model, calibration, method)
    return small, {refit.layer: refit.ridge for refit in refits}


def divergence(model, small, calibration):
    with torch.no_grad():
        before, after = (torch.cat([F.log_softmax(net(**b).logits, -1) for b in calibration]) for net in (model, small))
    return float((before.exp() * (before - after)).sum(-1).mean())


def test_the_ridge_is_the_one_whose_answers_diverge_least_on_inputs_held_out():
    model, calibration = families.make("llama", tie_word_embeddings=True), batches()
    fitting, judging = by_output.split(calibration)
    assert sum(len(b["input_ids"]) for b in judging) == 16 and sum(len(b["input_ids"]) for b in fitting) == 48
    tried = {}
    for ridge in (1.0, 0.1, 0.01):
        small, _ = repaired(model, fitting, {"name": "least_squares", "ridge": ridge})
        tried[ridge] = divergence(model, small, judging)
    best = min(tried, key=tried.__getitem__)
    assert tried[best] < divergence(model, repaired(model, fitting, "none")[0], judging)
    _, ridges = repaired(model, calibration, "least_squares")
    assert len(ridges) == 5 and {*ridges.values()} == {best}


def test_where_no_refit_helps_all_weights_stay():
    model, calibration = families.make("llama", tie_word_embeddings=True), batches()
    for part in ("self_attn.o_proj", "mlp.down_proj"):
        model.get_parameter(f"{GONE}.{part}.weight").data.zero_()  # the layer adds nothing
    plan = Plan((Edit("block", GONE),), fingerprint(model), describe(example_of(calibration[0])))
    small, notes = sp.apply(plan, model), []
    before = {name: value.clone() for name, value in small.state_dict().items()}
    assert reconstruct(small, plan, Network.trace(model, calibration[0]), calibration, notes=notes) == []
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())
    assert any("nothing was refitted" in note for note in notes)


@pytest.mark.parametrize("count", [8, 64])
def test_few_inputs_judge_nothing(count, monkeypatch):
    judged = []
    monkeypatch.setattr(by_output, "_divergence", lambda *_: judged.append(1) or 1.0)
    repaired(families.make("llama"), batches(count), "least_squares")
    assert bool(judged) == (count == 64)


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
    small = sp.apply(
        Plan((Edit("block", GONE),), fingerprint(model), describe(example_of({"input_ids": whole}))), model
    )
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
