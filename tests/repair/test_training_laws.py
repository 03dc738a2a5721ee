"""Laws of fine-tuning: what it must leave alone, what it must reach, and that an interruption changes nothing."""

import copy
import errno
import json
import os
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import simprune as sp
from simprune.core import store
from simprune.repair.training import finetune, notes_of, state
from simprune.repair.training.objective import Objective
from simprune.repair.training.optimizer import Average, restore
from simprune.settings import Finetune
from simprune.sources import Batches
from tests.networks import build


def same(a, b):
    return all(torch.equal(value, b[name]) for name, value in a.items())


def chain():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def classes(inputs=48, batch_size=8, shuffle=0):
    x = torch.randn(inputs, 4)
    return Batches(x, x[:, :3].argmax(1), batch_size=batch_size, shuffle=shuffle)


def test_no_epochs_change_nothing():
    model = chain()
    before = copy.deepcopy(model.state_dict())
    assert finetune(model, classes(), epochs=0) == [] and same(model.state_dict(), before)


def test_regression_reaches_least_squares():
    x, noise = torch.randn(64, 3), torch.randn(64, 2)
    y = x @ torch.randn(3, 2) + noise
    model = nn.Linear(3, 2)
    finetune(model, [(x, y)], epochs=80, lr=0.2, weight_decay=0.0)
    wanted = torch.linalg.lstsq(torch.cat([x, torch.ones(64, 1)], 1), y).solution
    torch.testing.assert_close(torch.cat([model.weight.T, model.bias[None]]), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("more", [{}, {"optimizer": "adamw"}, {"lora": 2, "ema": 0.9}], ids=["sgd", "adamw", "lora"])
def test_accumulated_batches_are_one_larger_batch(more):
    if "lora" in more:
        pytest.importorskip("peft")
    x = torch.randn(24, 4)
    labels = torch.randint(3, (24,)).masked_fill(torch.arange(24) % 5 == 0, -100)  # unequal numbers that count
    teacher, model = chain()[:2].append(nn.Linear(8, 3)), nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    one, two = copy.deepcopy(model), copy.deepcopy(model)
    how = {"epochs": 2, "teacher": teacher, "validation": [x], "lr": 0.01, "clip": 1.0, "select": "last"} | more
    finetune(one, [(x[:14], labels[:14]), (x[14:], labels[14:])], accumulate=2, **how)
    finetune(two, [(x, labels)], **how)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), model.parameters(), strict=True))


def test_an_average_of_equal_weights_is_these_weights():
    model, _ = build("Residual")
    average = Average(model, 0.99)
    for step in range(5):
        average.update(model, step)
    before = copy.deepcopy(model.state_dict())
    restore(model, average.values)
    assert same(model.state_dict(), before)


def test_averaged_weights_lie_between_those_of_the_steps():
    model, raw = nn.Linear(4, 3), nn.Linear(4, 3)
    raw.load_state_dict(model.state_dict())
    start, data = model.weight.clone(), classes()
    finetune(raw, data, epochs=1, lr=0.1)
    finetune(model, data, epochs=1, lr=0.1, ema=0.9)
    assert 0 < (model.weight - start).norm() < (raw.weight - start).norm()


def test_frozen_batchnorm_keeps_its_statistics_and_learns_its_weights():
    model, x = build("Residual")
    before = copy.deepcopy(model.state_dict())
    finetune(model, [(x, torch.arange(len(x)) % 5)], epochs=2, batchnorm="frozen", lr=0.1)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert any("bn" in name for name in changed)
    assert not any("running" in name or "tracked" in name for name in changed)


def test_equal_features_have_no_loss_and_others_have_one():
    model, x = build("Residual")
    teacher = copy.deepcopy(model)
    how = Finetune(distill=1.0, features=2.0)

    def loss():
        objective = Objective.of(model, teacher, x, how)
        with objective.features.watched(), torch.no_grad():
            return float(objective.loss(model.eval(), x))

    assert abs(loss()) < 1e-5
    nn.init.normal_(model.blocks[0].conv1.weight)
    assert loss() > 1e-2


@pytest.mark.parametrize("rows, width", [(20, 3), (6, 50)])
def test_the_similarity_of_features_is_that_of_the_measure(rows, width):
    X, Y = torch.randn(rows, width), torch.randn(rows, width + 2)
    value = sp.measures.get("cka").with_gradients(X, Y)
    assert float(value) == pytest.approx(sp.measures.get("cka")(X, Y), rel=1e-4)


def loss_of(model, batch, **options):
    return finetune(copy.deepcopy(model), [batch], epochs=1, lr=1e-12, **options)[0]["loss"]


@torch.no_grad()
def expected_losses(one, maps, x, yes, image, pixels):
    binary = F.binary_cross_entropy_with_logits(one(x)[:, 0], yes.float())
    return [float(value) for value in (binary, F.mse_loss(one(x)[:, 0], x[:, 0]), F.cross_entropy(maps(image), pixels))]


def test_labels_choose_the_loss():
    x, one, maps = torch.randn(6, 4), nn.Linear(4, 1), nn.Conv2d(4, 3, 1)
    yes = torch.arange(6) % 2
    image, pixels = torch.randn(2, 4, 5, 5), torch.randint(3, (2, 5, 5))
    expected = expected_losses(one, maps, x, yes, image, pixels)
    losses = [loss_of(one, (x, yes)), loss_of(one, (x, x[:, 0])), loss_of(maps, (image, pixels))]
    assert losses == pytest.approx(expected, rel=1e-5)


def test_labels_of_which_none_counts_give_no_loss():
    assert loss_of(nn.Linear(4, 3), (torch.randn(2, 4), torch.full((2,), -100))) == 0.0


@pytest.mark.parametrize(
    "labels, message",
    [
        (torch.tensor([0, 7]), "0 to 2.*got 0 to 7"),
        (torch.zeros(3).long(), "got labels of shape"),
        (torch.zeros(2, 5), "got labels of shape"),
        (torch.full((2, 3), torch.nan), "NaN"),
    ],
)
def test_labels_that_do_not_fit_are_refused_before_training(labels, message):
    model = nn.Linear(4, 3)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        finetune(model, [(torch.randn(2, 4), labels)])
    assert same(model.state_dict(), before)


class Three(nn.Module):
    """Scores of classes, values, and a map of scores of pixels, with labels in the batches of `labelled`."""

    def __init__(self):
        super().__init__()
        self.scores, self.values, self.pixels = nn.Linear(4, 3), nn.Linear(4, 2), nn.Linear(4, 8)

    def forward(self, x):
        return {"scores": self.scores(x), "values": self.values(x), "pixels": self.pixels(x).view(-1, 2, 2, 2)}


def labelled(inputs=6, **changes):
    labels = {"scores": torch.arange(inputs) % 3, "values": torch.randn(inputs, 2)}
    labels["pixels"] = torch.arange(4 * inputs).view(inputs, 2, 2) % 2
    return torch.randn(inputs, 4), labels | changes


@torch.no_grad()
def losses_of(model, batch):
    x, labels = batch
    answers, of = model(x), {"scores": F.cross_entropy, "values": F.mse_loss, "pixels": F.cross_entropy}
    return {name: float(of[name](answers[name], labels[name])) for name in of if labels[name] is not None}


@pytest.mark.parametrize("weights", [None, {"values": 4}, {"scores": 0, "pixels": 0.5}])
@pytest.mark.parametrize("without", [None, "scores", "values"])
def test_every_output_with_labels_has_its_objective_and_its_weight(weights, without):
    model, batch = Three(), labelled(**({without: None} if without else {}))
    terms = losses_of(model, batch)
    known = {name: (weights or {}).get(name, 1) for name in terms}
    mean = sum(known[name] * value for name, value in terms.items()) / sum(known.values())
    assert loss_of(model, batch, output_weights=weights) == pytest.approx(mean, rel=1e-5)
    teacher = copy.deepcopy(model)  # equal answers: the teacher's term is zero
    assert loss_of(model, batch, output_weights=weights, teacher=teacher) == pytest.approx(mean / 2, rel=1e-5)


def test_only_outputs_that_count_are_trained_and_all_of_them_learn():
    model, batch = Three(), labelled(64)
    start, before = copy.deepcopy(model.state_dict()), losses_of(model, batch)
    how = {"validation": [batch], "weight_decay": 0.0, "select": "last"}
    finetune(model, [batch], epochs=20, lr=0.1, **how)
    assert all(value < before[name] for name, value in losses_of(model, batch).items())
    model.load_state_dict(start)
    finetune(model, [batch], epochs=2, lr=0.1, output_weights={"values": 0}, **how)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, start[name])}
    assert changed == {"scores.weight", "scores.bias", "pixels.weight", "pixels.bias"}


def test_labels_of_several_outputs_count_alike_in_batches_of_any_size():
    x, labels = labelled(24)
    labels["scores"] = labels["scores"].masked_fill(torch.arange(24) % 5 == 0, -100)
    parts = [(x[part], {name: value[part] for name, value in labels.items()}) for part in (slice(14), slice(14, 24))]
    one, two = (Three() for _ in range(2))
    two.load_state_dict(one.state_dict())
    how = {"teacher": Three(), "validation": [(x, labels)], "lr": 0.01, "select": "last", "epochs": 2}
    finetune(one, parts, accumulate=2, **how)
    finetune(two, [(x, labels)], **how)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def three(changes=None, **options):
    return {"small": Three(), "train": [labelled(**(changes or {}))], **options}


def sharing():
    model = chain()
    return {"small": model, "teacher": nn.Sequential(model[0], nn.Linear(8, 3))}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (lambda: {"small": chain().requires_grad_(False)}, "all are frozen"),
        (lambda: {"small": nn.BatchNorm1d(4, affine=False)}, "all are frozen, or that has none"),
        (lambda: {"teacher": nn.Linear(4, 5)}, "teacher: expected outputs like those of the model"),
        (lambda: {"teacher": len}, "teacher: expected a torch.nn.Module"),
        (lambda: three({"values": torch.zeros(6, 5)}), r"output values: expected labels like .* shape \(6, 5\)"),
        (lambda: three({"pixels": torch.full((6, 2, 2), 2)}), "output pixels: expected labels from 0 to 1"),
        (lambda: three({"scores": None, "values": None, "pixels": None}), "no labels and there is no teacher"),
        (lambda: three(output_weights={"boxes": 1}), "no output 'boxes'"),
        (lambda: three(output_weights={"scores": -1}), "output_weights: expected numbers of at least 0; got -1"),
        (lambda: three(dict.fromkeys(["scores", "pixels"]), output_weights={"values": 0}), "an output that has labels"),
        (lambda: three(output_weights=dict.fromkeys(["scores", "values", "pixels"], 0)), "got 0 for all"),
        (lambda: three(validation=[labelled(values=None)]), "validation: expected labels of values"),
        (sharing, "small and teacher share the parameter 0.weight"),
        (lambda: {"train": [(torch.full((20, 4), torch.inf), torch.zeros(20).long())]}, "before the training is"),
        (lambda: {"validation": []}, "validation has no batches"),
        (lambda: {"calibration": []}, "calibration has no batches"),
        (lambda: {"validation": [torch.zeros(2, 4)]}, "validation: expected labels"),
        (lambda: {"seed": -1}, "seed: expected a whole number"),
        (lambda: {"until_passed": True, "passes": 3}, "passes: expected a function"),
        (lambda: {"folder": "/dev/null/x"}, "cannot be a folder"),
    ],
)
def test_what_cannot_be_trained_is_one_line_before_any_step(arguments, message):
    call = {"small": chain(), "train": classes(), **arguments()}
    before = copy.deepcopy(call["small"].state_dict())
    with pytest.raises((ValueError, OSError), match=message) as error:
        finetune(**call)
    assert same(call["small"].state_dict(), before) and "\n" not in str(error.value)


def test_a_training_that_diverges_ends_there_and_is_undone():
    model = chain()
    before = copy.deepcopy(model.state_dict())
    history = finetune(model, classes(), epochs=5, lr=1e30)
    assert len(history) == 1 and history[0]["diverged"] and same(model.state_dict(), before)
    assert any("no finite number; choose a smaller finetune.lr" in note for note in notes_of(history))


def test_a_batch_of_one_input_is_normalised_by_the_statistics_that_there_are():
    model, x = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)), torch.randn(65, 4)
    labels = torch.arange(65) % 3
    finetune(model, list(zip(x.split(32), labels.split(32), strict=True)), epochs=1)  # 32, 32 and 1
    assert model[1].running_mean.abs().sum() > 0


def test_the_log_of_an_earlier_training_in_the_same_folder_is_not_lost(tmp_path):
    (tmp_path / "training.jsonl").write_text("of somebody else")
    finetune(chain(), classes(), epochs=1, folder=tmp_path)
    assert (tmp_path / "training-before.jsonl").read_text() == "of somebody else"
    assert "of somebody" not in (tmp_path / "training.jsonl").read_text()


def test_training_ends_when_it_no_longer_helps():
    history = finetune(chain(), classes(), validation=list(classes(16, shuffle=None)), epochs=9, lr=1e-12, patience=1)
    assert len(history) == 2 and "held_out" in history[0]


def test_biases_and_norms_do_not_decay():
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    model.requires_grad_(True)
    before = copy.deepcopy(model.state_dict())
    zero = [(torch.zeros(2, 4), torch.full((2,), -100))]  # no gradient: all that changes decays
    finetune(model, zero, epochs=1, lr=0.1, weight_decay=0.5, until_passed=True, passes=lambda *_: True)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"0.weight", "2.weight"}


class Killed(Exception):
    pass


VARIANTS = {
    "sgd": {"momentum": 0.9},
    "adamw": {"optimizer": "adamw", "warmup": 0.3, "ema": 0.9, "accumulate": 2, "clip": 0.5},
    "lora": {"lora": 2, "ema": 0.9, "accumulate": 2},
}


def job(how, teacher=False):
    if how == "lora":
        pytest.importorskip("peft")
    torch.manual_seed(3)
    model, data = chain(), classes(96)
    return model, data, {"epochs": 2, "lr": 0.05, "teacher": chain() if teacher else None, **VARIANTS[how]}


@pytest.mark.parametrize("how, teacher", [("sgd", False), ("adamw", True), ("lora", False)])
def test_a_training_killed_at_any_step_ends_as_one_that_was_not(how, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(state, "SECONDS", 0.0)
    model, data, options = job(how, teacher)
    whole = finetune(model, data, folder=tmp_path / "whole", **options)
    lines = (tmp_path / "whole" / "training.jsonl").read_text()
    steps = [line["step"] for line in map(json.loads, lines.splitlines()) if "rate" in line]
    save = state.State.save
    for last in (steps[0], steps[len(steps) // 2 - 1], steps[-1]):  # also the last of an epoch
        folder, calls = tmp_path / str(last), []

        def dying(self, place, *args, calls=calls, last=last, **kwargs):
            if place.steps == last and not calls:  # before the step is stored, so that it is done again
                calls.append(last)
                raise Killed
            save(self, place, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(state.State, "save", dying)
            with pytest.raises(Killed):
                finetune(*job(how, teacher)[:2], folder=folder, **options)
        again, data, _ = job(how, teacher)
        assert finetune(again, data, folder=folder, **options) == whole
        assert same(again.state_dict(), model.state_dict())
        assert (folder / "training.jsonl").read_text() == lines


def test_a_training_goes_on_after_any_write_that_a_full_disk_does_not_take(tmp_path, monkeypatch):
    """The first write that fails leaves half of its bytes; later ones are not tried."""
    tensorboard = find_spec("tensorboard") is not None
    calls, fails = [], [0]
    whole_write, whole_flush = store.write_all, store.flush

    def write(file, content):
        calls.append("line")
        if len(calls) == fails[0]:
            whole_write(file, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        whole_write(file, content)

    def flush(path):
        calls.append("file")
        if len(calls) == fails[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole_flush(path)

    monkeypatch.setattr(state, "SECONDS", 0.0)
    monkeypatch.setattr(store, "write_all", write)
    monkeypatch.setattr(store, "flush", flush)
    model, data, options = job("adamw", True)
    options |= {"tensorboard": tensorboard, "epochs": 1}
    history = finetune(model, data, folder=tmp_path / "whole", **options)
    lines, writes = (tmp_path / "whole" / "training.jsonl").read_text(), len(calls)
    assert {"line", "file"} == {*calls}
    for number in (1, 2, 5, *range(writes // 2, writes // 2 + 4), writes):
        folder, (again, data, _) = tmp_path / str(number), job("adamw", True)
        before = copy.deepcopy(again.state_dict())
        calls.clear()
        fails[0] = number
        with pytest.raises(OSError, match=f"No space left on device: '{folder}"):
            finetune(again, data, folder=folder, **options)
        assert same(again.state_dict(), before), "the same model is trained again"
        assert not [*folder.rglob("*.partial")]
        log = folder / "training.jsonl"
        assert not log.is_file() or all(json.loads(line) for line in log.read_text().splitlines())
        for events in folder.glob("events.out.*"):
            records(events)
        assert finetune(again, data, folder=folder, **options) == history
        assert same(again.state_dict(), model.state_dict()) and log.read_text() == lines


def records(path):
    """The events of a file for TensorBoard; AssertionError where one is cut off."""
    content, found = path.read_bytes(), 0
    while content:
        size = int.from_bytes(content[:8], "little") + 16  # with the length and two checksums
        assert len(content) >= size
        content, found = content[size:], found + 1
    return found


def test_a_folder_of_another_training_is_refused(tmp_path):
    model, data, options = job("sgd")
    finetune(model, data, folder=tmp_path, **options)
    with pytest.raises(ValueError, match="other settings"):
        finetune(job("sgd")[0], data, folder=tmp_path, **options | {"lr": 0.1})
    relabelled = [(x, 2 - labels) for x, labels in data]
    with pytest.raises(ValueError, match="training inputs and labels"):
        finetune(job("sgd")[0], relabelled, folder=tmp_path, **options)


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights on Windows")
def test_links_in_a_training_are_refused_or_replaced_and_what_they_name_stays(tmp_path):
    folder, outside = tmp_path / "training", tmp_path / "outside"
    for path in (folder, outside / "state"):
        path.mkdir(parents=True)
    (outside / "notes").write_text("somebody's")
    (folder / "training.jsonl").symlink_to(outside / "notes")
    finetune(chain(), classes(), epochs=1, folder=folder)
    state.forget(folder)
    assert not (folder / "training.jsonl").is_symlink() and not (folder / "state").exists()
    (folder / "state").symlink_to(outside)
    (folder / "round-1").symlink_to(outside)
    with pytest.raises(ValueError, match="state is a link"):
        finetune(chain(), classes(), epochs=1, folder=folder)
    (tmp_path / "other" / "state").mkdir(parents=True)
    state.forget(folder)
    state.forget(tmp_path)
    assert (outside / "notes").read_text() == "somebody's" and (outside / "state").is_dir()
    assert (tmp_path / "other" / "state").is_dir(), "a folder of that name which no training has made"


def test_a_loader_of_torch_comes_in_the_same_order_for_the_same_seed():
    x, labels = torch.randn(40, 4), torch.arange(40) % 3
    start, results = chain(), []
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, labels), 8, shuffle=True)
    for _ in range(2):
        model = copy.deepcopy(start)
        finetune(model, loader, epochs=2, lr=0.1)
        results.append(model.state_dict())
    assert same(*results)


def test_tensorboard_gets_the_figures(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = finetune(chain(), classes(), epochs=2, folder=tmp_path, tensorboard=True)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("rate")] == [*range(1, len(events.Scalars("rate")) + 1)]
    assert [event.value for event in events.Scalars("held_out")] == pytest.approx([row["held_out"] for row in history])
    with pytest.raises(ValueError, match="folder"):
        finetune(chain(), classes(), epochs=1, tensorboard=True)


def test_merged_adapters_answer_as_unmerged_ones(monkeypatch):
    pytest.importorskip("peft")
    from peft.tuners.tuners_utils import BaseTunerLayer

    from tests.structures.architectures import build as architecture

    model = architecture("llama")[0].eval()
    ids = torch.randint(5, 60, (4, 6))
    names, unmerged = [name for name, _ in model.named_modules()], []
    from simprune.repair.training import adapters

    merging = adapters.adapted

    from contextlib import contextmanager

    @contextmanager
    def looked_at(own, rank):
        with merging(own, rank):
            yield
            assert any(isinstance(module, BaseTunerLayer) for module in own.modules())
            unmerged.append(own.eval()(ids).logits.detach())

    monkeypatch.setattr("simprune.repair.training.loop.adapted", looked_at)
    before = copy.deepcopy(model.state_dict())
    history = finetune(model, [{"input_ids": ids, "labels": ids}], epochs=6, lora=2, optimizer="adamw", lr=0.01)
    assert history[-1]["loss"] < history[0]["loss"]
    assert [name for name, _ in model.named_modules()] == names
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(model(ids).logits, unmerged[0], rtol=1e-4, atol=1e-5)
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed and all("proj" in name or "lm_head" in name for name in changed)
