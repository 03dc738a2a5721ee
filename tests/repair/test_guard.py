"""A training that loses on held-out calibration inputs is undone, and says so; one that cannot be judged says that."""

import copy

import pytest
import torch
from torch import nn

import simprune as sp
from simprune.repair.training.guard import Guard
from simprune.trace.answers import agreement, answer


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)).eval()


def inputs(count, seed=1):
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))


def damage(model, original, batches):
    return agreement(answer(model, batches), answer(original, batches))["damage"]


def lost(model):
    with torch.no_grad():
        model[2].bias.add_(1.0)


def helped(model):
    model.load_state_dict(network().state_dict())


@pytest.mark.parametrize("batch_size", [16, 64, 96])
def test_what_loses_is_undone_and_what_helps_stays(batch_size):
    calibration = list(inputs(96).split(batch_size))
    for change, stays in ((lost, False), (helped, True)):
        small = network()
        with torch.no_grad():
            small[0].weight.add_(0.05)
        before = copy.deepcopy(small.state_dict())
        guard = Guard.of(small, network(), calibration, {"epochs": 1})
        change(small)
        history = [{"epoch": 1, "kept": True}]
        notes = guard.end(history)
        assert guard.count == 32 and history[0]["kept"] is stays and bool(notes) is not stays
        same = all(torch.equal(value, small.state_dict()[name]) for name, value in before.items())
        assert same is not stays and all("the damage on 32 held-out calibration inputs was" in note for note in notes)


@pytest.mark.parametrize("count, judged", [(8, False), (32, False), (48, True)])
def test_with_too_few_held_out_inputs_a_note_says_that_training_cannot_be_judged(count, judged):
    small = network()
    guard = Guard.of(small, network(), [inputs(count)], {"epochs": 1})
    lost(small)
    (note,) = guard.end([{"epoch": 1, "kept": True}])
    assert ("was undone" in note) is judged and ("cannot be judged" in note) is not judged


@pytest.mark.parametrize("settings", [{"distill": 0.0}, {"select": "loss"}])
def test_training_that_follows_labels_is_not_judged_by_the_original(settings):
    small = network()
    guard = Guard.of(small, network(), [inputs(64)], settings)
    lost(small)
    assert guard.end([{"epoch": 1, "kept": True}]) == []


def test_what_was_undone_already_is_not_judged_again():
    small = network()
    assert Guard.of(small, network(), [inputs(8)], {}).end([{"epoch": 1, "kept": False}]) == []


@pytest.mark.parametrize("lr", [1e-3, 1.0])
@pytest.mark.parametrize("labelled", [False, True])
def test_compress_never_loses_against_not_training_on_held_out_calibration_inputs(lr, labelled):
    model, calibration = network(), [inputs(64)]
    x = inputs(128, seed=3)
    train = [(part, model(part).argmax(1) if labelled else None) for part in x.split(32)]
    options = {"calibration": calibration, "budget": {"macs": 0.6}}
    without = sp.compress(model, **options)
    trained = sp.compress(model, **options, train=train, finetune={"epochs": 2, "lr": lr})
    held = Guard.of(model, model, calibration, {}).inputs
    assert damage(trained.model, model, held) <= damage(without.model, model, held)
    undone = not any(epoch["kept"] for epoch in trained.report["finetuning"])
    assert undone is any("undone" in note for note in trained.report["notes"])
