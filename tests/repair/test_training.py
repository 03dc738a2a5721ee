import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from simprune.repair.batchnorm import reestimate_batchnorm
from simprune.repair.training import finetune
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
        finetune(model, [], teacher=model)
