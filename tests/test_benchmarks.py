"""The benchmarks' door: help runs nothing, a wrong folder is one line, archives become the data folder."""

import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import prepare_data

ROOT = Path(__file__).resolve().parents[1]


def run(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", *args], cwd=ROOT, capture_output=True, text=True)


def test_help_prints_help_and_runs_nothing():
    done = run("benchmarks", "--help")
    assert done.returncode == 0 and done.stdout.startswith("usage: python -m benchmarks")
    assert "benchmarks.prepare_data" in done.stdout and "== " not in done.stdout
    wrong = run("benchmarks", "similarity_sped")
    assert wrong.returncode == 2 and "is none of" in wrong.stderr


def test_a_wrong_folder_is_one_line(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        done = run("benchmarks.planner_resnet", "--data", str(folder))
        last = done.stderr.strip().splitlines()[-1]
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert f"{folder}; make it by python -m benchmarks.prepare_data" in last


def archive(folder: Path, content: object) -> Path:
    for name in ("data_batch_1", "test_batch"):
        (folder / name).write_bytes(pickle.dumps(content))
    path = folder / prepare_data.ARCHIVE
    with tarfile.open(path, "w:gz") as tar:
        for name in ("data_batch_1", "test_batch"):
            tar.add(folder / name, f"cifar-10-batches-py/{name}")
    return path


def test_images_are_read_from_the_archive_channels_last(tmp_path):
    pixels = np.arange(3 * 3072, dtype=np.int64).reshape(3, 3072).astype(np.uint8)
    found = prepare_data.images(archive(tmp_path, {b"data": pixels, b"labels": [3, 1, 2]}))
    assert found["test_images"].shape == (3, 32, 32, 3) and found["test_labels"].tolist() == [3, 1, 2]
    assert found["test_images"][1, 4, 5, 2] == pixels[1].reshape(3, 32, 32)[2, 4, 5]
    assert found["calibration_labels"].dtype == np.uint8 and sorted(found["calibration_labels"]) == [1, 2, 3]


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
