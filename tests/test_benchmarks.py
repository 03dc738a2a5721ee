"""The benchmarks' door: help runs nothing, a wrong folder is one line, archives become the data folder."""

import ast
import importlib
import pickle
import runpy
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks import prepare_data
from benchmarks._cifar import DEPTHS, jpeg_images, load
from benchmarks._cifar import pixels as normalised
from simprune.zoo import ResidualCNN

ROOT = Path(__file__).resolve().parents[1]


def run(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", *args], cwd=ROOT, capture_output=True, text=True)


def test_help_prints_help_and_runs_nothing():
    done = run("benchmarks", "--help")
    assert done.returncode == 0 and done.stdout.startswith("usage: python -m benchmarks")
    assert "benchmarks.prepare_data" in done.stdout and "== " not in done.stdout
    wrong = run("benchmarks", "similarity_sped")
    assert wrong.returncode == 2 and "is none of" in wrong.stderr


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # where another test has imported it
def test_a_wrong_folder_is_one_line(tmp_path, monkeypatch, capsys):
    for folder in (tmp_path / "nowhere", tmp_path):
        monkeypatch.setattr(sys, "argv", ["planner_resnet", "--data", str(folder)])
        with pytest.raises(SystemExit, match="^2$"):
            runpy.run_module("benchmarks.planner_resnet", run_name="__main__")
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"{folder}; make it by python -m benchmarks.prepare_data" in last


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_what_benchmarks_import_is_there_also_inside_of_functions(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("benchmarks", "simprune"):
            module = importlib.import_module(str(node.module))
            missing = [name.name for name in node.names if not hasattr(module, name.name)]
            for name in missing:  # a module of a folder
                importlib.import_module(f"{node.module}.{name}")


def archive(folder: Path, content: object) -> Path:
    for name in ("data_batch_1", "test_batch"):
        (folder / name).write_bytes(pickle.dumps(content))
    path = folder / prepare_data.ARCHIVE
    with tarfile.open(path, "w:gz") as tar:
        for name in ("data_batch_1", "test_batch"):
            tar.add(folder / name, f"cifar-10-batches-py/{name}")
    return path


def test_images_are_read_from_the_archive_channels_last_and_in_its_order(tmp_path):
    pixels = np.arange(3 * 3072, dtype=np.int64).reshape(3, 3072).astype(np.uint8)
    splits = prepare_data.images(archive(tmp_path, {b"data": pixels, b"labels": [3, 1, 2]}))
    found = prepare_data.lossless(splits, test_images=2)
    assert found["test_images"].shape == (2, 32, 32, 3) and found["test_labels"].tolist() == [3, 1]
    assert found["test_images"][1, 4, 5, 2] == pixels[1].reshape(3, 32, 32)[2, 4, 5]
    assert found["calibration_labels"].dtype == np.uint8 and found["calibration_labels"].tolist() == [3, 1, 2]


def test_jpeg_images_lie_class_after_class_and_are_read_by_the_benchmarks(tmp_path):
    rows = np.arange(32)[:, None]
    pixels = np.stack([np.broadcast_to((rows * scale)[..., None], (32, 32, 3)) for scale in (1, 3, 6)]).astype(np.uint8)
    prepare_data.write(tmp_path / "cifar10_jpeg_test.npz", prepare_data.as_jpeg(pixels, np.uint8([3, 1, 1])))
    ((images, labels),) = jpeg_images(tmp_path, "test")
    assert labels.tolist() == [1, 1, 3]
    expected = normalised(pixels[[1, 2, 0]])
    assert (images - expected).abs().max() < 0.2  # as far as JPEG changes a ramp


def test_a_network_is_adapted_to_jpeg_images_with_the_published_one_unchanged(tmp_path, monkeypatch, capsys):
    labels = np.arange(64).astype(np.uint8) % 10
    pixels = np.random.default_rng(0).integers(0, 255, (64, 32, 32, 3)).astype(np.uint8)
    for split in ("train", "test"):
        prepare_data.write(tmp_path / f"cifar10_jpeg_{split}.npz", prepare_data.as_jpeg(pixels, labels))
    monkeypatch.setitem(DEPTHS, "resnet56", 1)
    torch.manual_seed(0)
    model = ResidualCNN(in_channels=3, widths=(16, 32, 64), depths=(1, 1, 1), shortcut="A")
    state = {name: value for name, value in model.state_dict().items() if "num_batches" not in name}
    save_file(state, tmp_path / "cifar10_resnet56.safetensors")
    prepare_data.adapt(tmp_path)
    assert "adapted to JPEG images" in capsys.readouterr().out
    monkeypatch.setitem(DEPTHS, "resnet56_jpeg", 1)
    adapted = load(tmp_path, "resnet56_jpeg")
    assert not torch.equal(adapted.state_dict()["conv1.weight"], state["conv1.weight"])
    assert torch.equal(load(tmp_path, "resnet56").state_dict()["conv1.weight"], state["conv1.weight"])


def test_an_archive_cannot_run_code(tmp_path):
    with pytest.raises(ValueError, match="which is no array"):
        prepare_data.images(archive(tmp_path, subprocess.run))


def test_a_missing_or_another_file_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match="get it from https://www.cs.toronto.edu"):
        prepare_data.obtain(tmp_path, download=False)
    (tmp_path / prepare_data.ARCHIVE).write_bytes(b"another")
    with pytest.raises(SystemExit, match="is another file: expected a SHA-256 of 6d958be0"):
        prepare_data.obtain(tmp_path, download=False)


def test_weights_get_the_names_of_the_benchmarks(tmp_path):
    state = {"module.conv1.weight": torch.ones(2, 2), "module.bn1.num_batches_tracked": torch.tensor(3)}
    torch.save({"state_dict": state}, tmp_path / "some.th")
    assert list(prepare_data.weights(tmp_path / "some.th")) == ["conv1.weight"]
