import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import simprune as sp
from simprune.repair.batchnorm import reestimate_batchnorm
from simprune.repair.training import finetune, notes_of
from simprune.repair.training.held import Held
from simprune.repair.training.judge import Judge
from simprune.repair.training.objective import Objective
from simprune.settings import Finetune
from simprune.sources import Batches
from tests.networks import build


def test_statistics_become_the_average_of_the_batches():
    norm = nn.BatchNorm1d(3, momentum=0.7)
    batches = [torch.randn(50, 3) * 2 + 1 for _ in range(4)]
    reestimate_batchnorm(norm, batches)
    torch.testing.assert_close(norm.running_mean, torch.stack([b.mean(0) for b in batches]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([b.var(0) for b in batches]).mean(0))
    assert norm.momentum == 0.7


def test_only_running_statistics_change_and_the_mode_comes_back():
    model, x = build("Residual")
    model.train()
    before = copy.deepcopy(model.state_dict())
    reestimate_batchnorm(model, [x])
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed
    assert all("running" in name or "tracked" in name for name in changed)
    assert all(module.training for module in model.modules())


def test_no_batches_is_an_error():
    with pytest.raises(ValueError, match="no batches"):
        reestimate_batchnorm(build("Residual")[0], [])


@pytest.fixture
def task():
    model, x = build("Residual")
    return model, x, torch.arange(len(x)) % 5


def test_training_learns_and_reports_every_epoch(task):
    model, x, labels = task
    history = finetune(model, [(x, labels)], epochs=8, lr=0.05)
    assert [row["epoch"] for row in history] == list(range(1, 9))
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    assert not model.training


def test_a_seed_makes_training_repeatable(task):
    model, x, labels = task
    runs = [copy.deepcopy(model) for _ in range(2)]
    state = torch.get_rng_state()
    for run in runs:
        finetune(run, [(x, labels)], teacher=model, epochs=2, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(*(run.parameters() for run in runs), strict=True))


def test_a_teacher_alone_is_followed_and_not_changed(task):
    teacher, x, _ = task
    student = copy.deepcopy(teacher)
    nn.init.normal_(student.head.weight, std=0.1)
    before = copy.deepcopy(teacher.state_dict())

    def divergence():
        return F.kl_div(student(x).log_softmax(1), teacher(x).log_softmax(1), log_target=True, reduction="batchmean")

    start = float(divergence().detach())
    finetune(student, [x], teacher=teacher, epochs=10, lr=0.05)
    assert float(divergence().detach()) < 0.5 * start
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_the_students_own_answers_give_no_loss(task):
    model, x, labels = task
    first = finetune(copy.deepcopy(model), [(x, labels)], teacher=model, epochs=1, distill=1.0, lr=1e-9)
    assert first[0]["loss"] >= 0


@pytest.mark.parametrize(
    "options, message",
    [({"epochs": -1}, "epochs"), ({"lr": 0}, "lr"), ({"distill": 2}, "distill"), ({"temperature": 0}, "temperature")],
)
def test_wrong_options_are_refused_before_anything_changes(task, options, message):
    model, x, labels = task
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        finetune(model, [(x, labels)], **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_nothing_to_learn_from_is_an_error(task):
    model, x, _ = task
    with pytest.raises(ValueError, match="no labels and there is no teacher"):
        finetune(model, [x])
    with pytest.raises(ValueError, match="no batches"):
        finetune(model, [], teacher=copy.deepcopy(model))


class Spy(nn.Module):
    """Remembers the inputs that it is trained on."""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model, []

    def forward(self, x):
        self.seen += [row.clone() for row in x] if self.training else []
        return self.model(x)


def learned(width=6, inputs=400):
    """A teacher, a student a little apart from it, and batches that come in another order on every walk."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        student[2].weight += 0.02 * torch.randn_like(student[2].weight)
    x = torch.randn(inputs, width)
    return teacher, student, Batches(x, teacher(x).argmax(1), batch_size=64, shuffle=0)


def judged(held, teacher):
    """What a student is worth on held-out inputs."""
    first = next(iter(held.batches))
    return lambda student: Judge(held, Objective.of(student, teacher, first, Finetune())).figures(student)["held_out"]


@pytest.mark.parametrize("lr", [1e-4, 0.01, 0.3, 30.0])
@pytest.mark.parametrize("labels", [True, False])
def test_training_never_loses_on_inputs_that_it_has_not_seen(lr, labels):
    teacher, student, batches = learned()
    train = batches if labels else [x for x, _ in batches]
    before, held = copy.deepcopy(student.state_dict()), Held(train)
    worth = judged(held, teacher)
    start = worth(student)
    history = finetune(student, train, teacher=teacher, epochs=3, lr=lr)
    value = worth(student)
    kept = [row for row in history if row["kept"]]
    assert history[0]["before"] == pytest.approx(start)  # not equal, since the batches come in another order
    least = min([start, *(row["held_out"] for row in history if row["held_out"] == row["held_out"])])
    assert value == pytest.approx(least) and value == pytest.approx(kept[0]["held_out"] if kept else start)
    if not kept:
        assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
        assert "did not help and was undone" in notes_of(history)[0]
    assert (not notes_of(history)) == history[-1]["kept"]


def test_a_student_that_is_far_from_its_teacher_is_trained():
    teacher, student, batches = learned()
    nn.init.normal_(student[2].weight, std=0.1)
    assert finetune(student, [x for x, _ in batches], teacher=teacher, epochs=5, lr=0.1)[-1]["kept"]


def test_what_is_held_out_is_never_trained_on_in_whatever_order_it_comes():
    teacher, student, batches = learned()
    spy, held = Spy(student), Held(batches)
    finetune(spy, batches, teacher=teacher, epochs=3, lr=0.01)
    trained_on = {tuple(row.tolist()) for row in spy.seen}
    apart = {tuple(row.tolist()) for x, _ in held.batches for row in x}
    assert held.source == "held out" and not trained_on & apart
    assert len(trained_on) + len(apart) == 400 and len(spy.seen) == 3 * len(trained_on)


def test_few_inputs_are_all_trained_on_and_judged():
    teacher, student, batches = learned(inputs=20)
    held = Held(batches)
    worth = judged(held, teacher)
    start = worth(student)
    history = finetune(student, batches, teacher=teacher, epochs=2, lr=30.0)
    assert held.source == "train" and worth(student) <= start * (1 + 1e-6)
    assert any("fewer than 16" in note for note in notes_of(history))


def test_a_note_says_that_training_was_undone():
    _, student, batches = learned()
    x = next(iter(batches))[0]
    made = sp.compress(
        student, calibration=[x], train=[(x, torch.randint(3, (64,)))], budget={"macs": 0.95}, reconstruct="none",
        finetune={"lr": 100.0, "distill": 0.01, "epochs": 1},
    )  # fmt: skip
    assert any("training did not help and was undone" in note for note in made.report["notes"])
