"""Exported files compute what the model computes, in every format, or nothing is written."""

import errno
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import simprune as sp
from simprune import formats
from simprune.core import registry
from simprune.core.registry import Part, parts
from simprune.formats import Mismatch, Written
from simprune.zoo.residual import ResidualCNN
from tests.disk import files_of_at_most

OPENED = {
    "torch": lambda folder, inputs: torch.export.load(folder / "model.pt2").module()(inputs)[0],
    "onnx": lambda folder, inputs: torch.from_numpy(_session(folder).run(None, {"x": inputs.numpy()})[0]),
}


def _session(folder):
    return pytest.importorskip("onnxruntime").InferenceSession(folder / "model.onnx")


def network():
    return ResidualCNN(in_channels=1, widths=(4, 8), depths=(1, 2), classes=5)


@pytest.fixture(scope="module")
def images():
    return torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return network().eval()


@pytest.fixture(scope="module")
def result(model, images):
    fast = {"structures": ["channels"], "score": "magnitude", "reconstruct": "none"}
    return sp.compress(model, calibration=[images], test=[images], budget={"macs": 0.7}, **fast)


@pytest.fixture
def part(monkeypatch):
    """Registers a format for one test."""
    parts("format")

    def add(name, function):
        monkeypatch.setitem(registry._parts["format"], name, Part("format", name, function))

    return add


@pytest.mark.parametrize("name", OPENED)
def test_a_pruned_network_is_what_it_was_in_every_format_and_at_every_batch_size(result, images, tmp_path, name):
    written = sp.export(result, tmp_path / "out", name)
    for rows in (1, 7):
        inputs = images[:rows]
        with torch.no_grad():
            expected = result.model(inputs)
        assert torch.allclose(OPENED[name](tmp_path / "out", inputs), expected, atol=1e-5)
    assert written.folder == tmp_path / "out"
    assert written.share < 1e-5 and written.notes == ()
    assert "largest difference" in str(written)
    said = json.loads((tmp_path / "out" / "export.json").read_text())
    assert said["difference"] == written.difference
    assert sp.Plan.load(tmp_path / "out" / "plan.yaml") == result.plan
    page = (tmp_path / "out" / "README.md").read_text()
    macs = result.report["stages"][-1]["macs"]
    assert all(text in page for text in (f"{macs:,}", result.plan.edits[0].name, result.verdict.outcome))


@pytest.mark.parametrize("name, most", [("torch", 200), ("torch", 5000), ("onnx", 200)])
def test_what_a_full_disk_does_not_take_is_one_error_and_leaves_nothing(name, most, tmp_path):
    if name == "onnx":
        pytest.importorskip("onnxruntime")
    with files_of_at_most(most), pytest.raises(OSError, match=r"too large: '.*out") as caught:
        sp.export(nn.Linear(30, 30), tmp_path / "out", name, inputs=torch.randn(4, 30))
    assert caught.value.errno == errno.EFBIG and not [*tmp_path.iterdir()]


def test_a_bundle_is_exported_like_what_it_was_saved_from(result, tmp_path, part):
    written = []
    part("weights", lambda model, example, folder: written.append(model) or Written(_runs(model), "usage"))
    sp.save(tmp_path / "bundle", result)
    sp.export(tmp_path / "bundle", tmp_path / "out", "weights", model=network)
    sp.export(result, tmp_path / "other", "weights")
    first, second = (model.state_dict() for model in written)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert (tmp_path / "out" / "README.md").read_text() == (tmp_path / "other" / "README.md").read_text()


def _runs(model, change=lambda x: x):
    return lambda args, kwargs: [change(model(*args, **kwargs))]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x: x + 1, r"output of the files differs from the model's by 1, .* nothing was written"),
        (lambda x: x * torch.nan, "differs from the model's by nan"),
        (lambda x: x[:, :2], "other shapes"),
        (lambda x: x[:0], "other shapes"),
    ],
)
def test_files_that_compute_something_else_are_not_left(model, images, tmp_path, part, change, message):
    part("wrong", lambda model, example, folder: _touched(folder, Written(_runs(model, change), "usage")))
    with pytest.raises(Mismatch, match=message):
        sp.export(model, tmp_path / "out", "wrong", inputs=images)
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_wrong_at_another_number_of_inputs_are_not_left(model, images, tmp_path, part):
    part("wrong", lambda model, *_: Written(_runs(model, lambda x: x if len(x) == 2 else 0 * x), "usage"))
    with pytest.raises(Mismatch, match="nothing was written"):
        sp.export(model, tmp_path / "out", "wrong", inputs=images)


def test_a_fixed_number_of_inputs_is_said(model, images, tmp_path, part):
    def run(args, kwargs):
        assert len(args[0]) == 2
        return [model(*args)]

    part("fixed", lambda *_: Written(run, "usage"))
    written = sp.export(model, tmp_path / "out", "fixed", inputs=images)
    assert written.notes == ("the files do not take inputs of shape [1, 1, 8, 8], nor [3, 1, 8, 8]",)
    assert written.notes[0] in (tmp_path / "out" / "README.md").read_text()


def _touched(folder, written):
    (folder / "file").write_text("half written")
    return written


def test_an_error_on_the_way_leaves_what_was_there(model, images, tmp_path, part):
    part("right", lambda model, example, folder: _touched(folder, Written(_runs(model), "usage")))
    part("broken", lambda model, example, folder: _touched(folder, 1 / 0))
    folder = tmp_path / "out"
    sp.export(model, folder, "right", inputs=images)
    before = {path.name: path.read_text() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="format broken cannot express this model: ZeroDivisionError"):
        sp.export(model, folder, "broken", inputs=images)
    assert {path.name: path.read_text() for path in folder.iterdir()} == before
    sp.export(model, folder, "right", inputs=images)  # an earlier export may be replaced
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"is no earlier export \(it holds mine\.txt\)"):
        sp.export(model, folder, "right", inputs=images)
    assert (folder / "mine.txt").is_file()


@pytest.mark.parametrize(
    "source, options, message",
    [
        (nn.Linear(2, 2), {}, "inputs: a model alone does not say what it takes"),
        (nn.Linear(2, 2), {"format": "onx"}, "did you mean 'onnx'"),
        (nn.Linear(2, 2), {"format": {"name": "onnx", "opst": 18}}, "did you mean 'opset'"),
        (3, {}, "expected what compress returned, a bundle's folder or a model; got int"),
        ("nowhere", {}, "model: a bundle is rebuilt on its original"),
        (nn.Linear(2, 2), {"inputs": torch.ones(2, 2), "format": "transformers"}, "expected a model of transformers"),
    ],
)
def test_wrong_arguments_are_one_line_and_leave_nothing(tmp_path, source, options, message):
    with pytest.raises((ValueError, KeyError), match=message) as caught:
        sp.export(source, tmp_path / "out", **({"format": "torch"} | options))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


class Odd(nn.Module):
    """Takes tensors in a list."""

    def forward(self, x):
        return x[0] + x[1]


def test_arguments_that_no_format_takes_are_named(tmp_path):
    with pytest.raises(ValueError, match="got a (list|tuple): wrap the model"):
        sp.export(Odd(), tmp_path / "out", "torch", inputs={"x": [torch.ones(2, 2), torch.ones(2, 2)]})


def test_a_model_stays_as_it_is(result, tmp_path):
    small = network().train()
    hooks = [len(module._forward_hooks) for module in small.modules()]
    sp.export(small, tmp_path / "out", "torch", inputs=torch.randn(4, 1, 8, 8))
    assert all(module.training for module in small.modules())
    assert hooks == [len(module._forward_hooks) for module in small.modules()]
    assert replace(result).model is result.model and formats.export is sp.export
