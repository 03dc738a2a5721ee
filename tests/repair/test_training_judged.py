"""What a training is judged on, when it ends, and what is said of it."""

import copy

import pytest
import torch
from torch import nn

import simprune as sp
from simprune.repair.training import finetune, notes_of
from simprune.repair.training.features import Features
from simprune.repair.training.held import Held
from simprune.sources import Batches
from simprune.trace.answers import agreement, answer
from tests.networks import build
from tests.structures.architectures import build as architecture


def task(inputs=200, shuffle=0):
    torch.manual_seed(0)
    x = torch.randn(inputs, 4)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    return model, Batches(x, x[:, :3].argmax(1), batch_size=32, shuffle=shuffle)


@pytest.mark.parametrize("lr", [1e-3, 0.05, 30.0])
def test_a_training_without_a_teacher_never_ends_with_a_larger_loss_on_held_out_inputs(lr):
    model, batches = task()
    start = copy.deepcopy(model.state_dict())
    history = finetune(model, batches, epochs=3, lr=lr)
    assert history[0]["judged_on"] == "held out" and history[0]["by"] == "loss"
    kept = [row for row in history if row["kept"]]
    assert all(row["held_out"] < row["before"] for row in kept)
    if not kept:
        assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())


def test_an_eighth_is_held_out_and_never_more_than_512():
    for inputs in (200, 1000, 9000):
        _, batches = task(inputs)
        held = Held(batches)
        count = sum(len(x) for x, _ in held.batches)
        assert count == len(held.keys) and inputs / 12 < max(count, inputs / 8 if count >= 512 else 0) < inputs / 6
        assert count < 512 + 32


def followed(**options):
    """A student a little apart from its teacher, trained on labels of another task, which cost damage."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)).eval()
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        student[0].weight.add_(0.05)
    x = torch.randn(224, 4)
    train = [(rows, (teacher(rows).argmax(1) + 1) % 3) for rows in x[96:].split(32)]
    start = copy.deepcopy(student.state_dict())
    options = {"epochs": 2, "lr": 0.05, "validation": train, **options}
    if isinstance(options.get("calibration"), int):
        options["calibration"] = [x[: options["calibration"]]]
    history = finetune(student, train, teacher, **options)
    undone = all(torch.equal(value, start[name]) for name, value in student.state_dict().items())
    assert undone is not any(row["kept"] for row in history) and history[-1]["held_out"] < history[0]["before"]
    return undone, history


@pytest.mark.parametrize(
    "options, undone",
    [
        ({}, True),
        ({"until_passed": True, "passes": lambda *_: False}, True),
        ({"until_passed": True, "passes": lambda *_: True}, False),
        ({"distill": 0.0}, False),
        ({"select": "loss"}, False),
        ({"calibration": None}, False),
    ],
)
def test_no_epoch_stays_that_loses_on_held_out_calibration_inputs_unless_something_else_is_to_decide(options, undone):
    was_undone, history = followed(**{"calibration": 96, **options})
    assert was_undone is undone
    assert any("the damage on 32 held-out calibration inputs was" in note for note in notes_of(history)) is undone


def test_the_last_epoch_stays_where_it_is_asked_for_and_a_note_says_what_it_lost():
    undone, history = followed(calibration=96, select="last")
    assert not undone and [row["kept"] for row in history] == [False] * (len(history) - 1) + [True]
    assert any("the last epoch stays, although the damage on 32" in note for note in notes_of(history))


def test_with_few_held_out_calibration_inputs_a_note_says_that_they_cannot_judge():
    undone, history = followed(calibration=32)
    assert not undone and any("8 are held out, fewer than 16" in note for note in notes_of(history))


@pytest.mark.parametrize("weights", [None, {"aux": 4}, {"aux": 0}])
def test_the_damage_is_that_of_the_answers(weights):
    torch.manual_seed(0)
    teacher, model, x = Pair().eval(), Pair().eval(), torch.randn(64, 4)
    how = {"validation": [x[:30], x[30:]], "calibration": [x], "output_weights": weights}
    history = finetune(model, [x], teacher, epochs=1, lr=1e-12, **how)
    expected = agreement(answer(model, [x]), answer(teacher, [x], weights))["damage"]
    (held,) = Held([x], [x], [x]).calibration
    guarded = agreement(answer(model, [held]), answer(teacher, [held], weights))["damage"]
    assert [history[0]["before"], history[0]["damage_before"]] == pytest.approx([expected, guarded], rel=1e-5)


@pytest.mark.parametrize("lr", [1e-3, 1.0])
@pytest.mark.parametrize("labelled", [False, True])
def test_compress_never_loses_against_not_training_on_held_out_calibration_inputs(lr, labelled):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)).eval()
    calibration, x = [torch.randn(64, 4)], torch.randn(128, 4)
    train = [(part, model(part).argmax(1) if labelled else None) for part in x.split(32)]
    options = {"calibration": calibration, "budget": {"macs": 0.6}}
    without = sp.compress(model, **options)
    trained = sp.compress(model, **options, train=train, finetune={"epochs": 2, "lr": lr})
    held = Held(train, None, calibration).calibration
    lost, before = (agreement(answer(made.model, held), answer(model, held)) for made in (trained, without))
    assert lost["damage"] <= before["damage"] * (1 + 1e-6)
    undone = not any(epoch["kept"] for epoch in trained.report["finetuning"])
    assert undone is any("undone" in note for note in trained.report["notes"])


def test_batch_sizes_do_not_change_what_is_held_out():
    x = torch.randn(300, 4)
    assert Held(list(x.split(7))).keys == Held(list(x.split(64))).keys


def test_training_ends_with_the_epoch_that_passes():
    model, batches = task()
    asked = []

    def passes(small, held):
        asked.append(sum(len(x) for x, _ in held))
        return len(asked) == 2

    history = finetune(model, batches, epochs=9, lr=0.01, until_passed=True, passes=passes)
    assert len(history) == 2 and history[-1]["passed"] and history[-1]["kept"] and asked[0] > 16
    with pytest.raises(ValueError, match="until_passed: expected what decides"):
        finetune(model, batches, until_passed=True)


def test_gates_end_the_training_of_a_compression():
    model, batches = task()
    x = torch.cat([images for images, _ in batches])
    made = sp.compress(
        model, calibration=[x], train=batches, test=[x], budget={"macs": 0.9},
        gates=[sp.Gate("disagreement", limit=1.0)], finetune={"epochs": 7, "until_passed": True},
    )  # fmt: skip
    assert len(made.report["finetuning"]) == 1


def test_accuracy_that_rises_while_agreement_falls_is_said():
    model, batches = task(400)
    teacher = copy.deepcopy(model)
    other = [(x, (labels + 1) % 3) for x, labels in batches]  # labels of another task than the teacher's
    history = finetune(model, other, teacher, epochs=5, lr=0.1, distill=0.0)
    assert history[-1]["kept"] and "agreement with the original fell" in history[-1]["drift"]
    assert any("larger finetune.distill" in note for note in notes_of(history))
    model, batches = task(400)
    history = finetune(model, batches, epochs=2, lr=0.1)
    assert not any("drift" in row for row in history) and notes_of(history) == []


def test_inputs_that_differ_from_walk_to_walk_are_said():
    class Noisy(list):
        def __iter__(self):
            return ((x + 0.1 * torch.randn_like(x), labels) for x, labels in super().__iter__())

    model, batches = task()
    history = finetune(model, Noisy(batches), epochs=1, lr=0.1)
    assert any("differ from walk to walk" in note for note in notes_of(history))
    history = finetune(model, Noisy(batches), epochs=1, lr=0.1, validation=list(batches))
    assert not any("walk" in note for note in notes_of(history)) and history[0]["judged_on"] == "validation"


def test_a_validation_split_decides_which_epoch_stays():
    model, batches = task()
    wrong = [(x, (labels + 1) % 3) for x, labels in batches]
    assert not any(row["kept"] for row in finetune(copy.deepcopy(model), batches, validation=wrong, lr=0.1))
    assert any(row["kept"] for row in finetune(copy.deepcopy(model), batches, validation=list(batches), lr=0.1))


def test_tokens_are_the_labels_of_a_language_model_that_has_none():
    model = architecture("llama")[0].eval()
    other, ids = copy.deepcopy(model), torch.randint(5, 60, (4, 6))
    mask = torch.ones_like(ids).index_fill_(1, torch.tensor([5]), 0)
    how = {"epochs": 2, "optimizer": "adamw", "lr": 0.01}
    finetune(model, [{"input_ids": ids, "attention_mask": mask}], **how)
    labels = ids.masked_fill(mask == 0, -100)
    finetune(other, [{"input_ids": ids, "attention_mask": mask, "labels": labels}], **how)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("measure", ["cka", "cka_debiased", "orthogonal_procrustes"])
def test_blocks_become_alike_by_the_measure(measure):
    model, x = build("Residual")
    teacher = copy.deepcopy(model)
    with torch.no_grad():
        model.blocks[1].conv2.weight += 0.3 * torch.randn_like(model.blocks[1].conv2.weight)
    history = finetune(
        model, [x], teacher, epochs=6, lr=0.01, features=1.0, feature_measure=measure, validation=[x], select="loss"
    )
    assert history[-1]["loss"] < history[0]["loss"] and history[-1]["kept"]


def test_a_measure_without_gradients_is_refused():
    model, _ = build("Residual")
    with pytest.raises(ValueError, match="feature_measure: expected a measure with gradients; mutual_knn"):
        Features(model, copy.deepcopy(model), "mutual_knn")


class Pair(nn.Module):
    """Two outputs that are no scores: embeddings, and something beside them."""

    def __init__(self):
        super().__init__()
        self.embed, self.aux = nn.Linear(4, 6), nn.Linear(4, 2)

    def forward(self, x):
        return {"embeddings": self.embed(x), "aux": self.aux(x)}


def test_embeddings_and_further_outputs_follow_the_teacher():
    teacher, model = Pair().eval(), Pair()
    x = torch.randn(64, 4)
    before = [(a - b).norm() for a, b in zip(teacher(x).values(), model(x).values(), strict=True)]
    history = finetune(model, [x], teacher, epochs=40, lr=0.05, weight_decay=0.0, validation=[x])
    after = [(a - b).norm() for a, b in zip(teacher(x).values(), model(x).values(), strict=True)]
    assert history[0]["by"] == "teacher" and "accuracy" not in history[0]
    assert all(late < 0.2 * early for early, late in zip(before, after, strict=True))


def test_the_training_of_a_compression_weighs_outputs_like_the_run():
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4), Pair()).eval(), torch.randn(64, 4)
    how = {"budget": {"macs": 0.8}, "structures": ["channels"], "reconstruct": "none", "outputs": {"aux": 0.5}}
    for own in (None, {"aux": 2}):
        made = sp.compress(model, calibration=[x], train=[x], finetune={"epochs": 1, "output_weights": own}, **how)
        assert made.report["settings"]["finetune"]["output_weights"] == (own or {"aux": 0.5})
