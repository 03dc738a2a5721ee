"""Several processes as one: the same plan byte for byte, weights and verdict, and a clear end of all of them."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from simprune.bundle import load
from tests.processes.host import CASES, network
from tests.processes.trainings import ALIKE

ROOT = Path(__file__).parents[2]
Run = dict[tuple[str, int], list[dict[str, Any]]]  # by case and number of processes, in order of rank; a killed one: {}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, Run]:
    """What all cases end with; of several workers of pytest one runs them, and the others wait."""
    pytest.importorskip("accelerate")
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "host"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "users_two.py").exists():
            program = [sys.executable, "-W", "ignore", "-m", "tests.processes.host", str(folder)]
            env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            subprocess.run(program, cwd=ROOT, env=env, check=True, capture_output=True, timeout=600)
    content: Run = {}
    for case, counts in CASES:
        for count in counts:
            paths = [folder / f"{case.__name__}-{count}-{rank}.json" for rank in range(count)]
            content[case.__name__, count] = [json.loads(path.read_text()) if path.is_file() else {} for path in paths]
    defects = [said["defect"] for ranks in content.values() for said in ranks if "defect" in said]
    assert not defects, defects[0]
    return folder, content


@pytest.mark.parametrize("case, counts", [("compress", (2, 3)), ("tokens", (2,))])
def test_plan_weights_and_gates_do_not_depend_on_the_number_of_processes(run, case, counts):
    _, content = run
    (alone,) = content[case, 1]
    assert "edits:\n- remove" in alone["plan"]
    for said in (said for count in counts for said in content[case, count]):
        assert said["plan"] == alone["plan"]
        assert said["gates"] == alone["gates"]
        for name, value in alone["weights"].items():
            torch.testing.assert_close(torch.tensor(said["weights"][name]), torch.tensor(value), rtol=0, atol=1e-6)
    for count in counts:
        assert content[case, count][-1]["weights"] == content[case, count][0]["weights"]


def test_the_first_process_writes_the_bundle_and_measures_for_all(run):
    _, content = run
    first, second = content["compress", 2]
    assert first["latency"] == second["latency"]
    small, images = load(first["bundle"], network), torch.zeros(2, 1, 6, 6)
    assert small(images).shape == (2, 5)
    assert not list(Path(first["bundle"]).parent.glob(".*"))


def test_processes_that_are_given_different_things_say_so(run):
    _, content = run
    for said in content["different", 2]:
        assert said["batches"]["error"] == said["weights"]["error"] == said["labels"]["error"] == "ValueError"
        assert "expected the calibration batches to be the same" in said["batches"]["text"]
        assert "expected the weights of the model to be the same" in said["weights"]["text"]
        assert "expected the train batches to be the same" in said["labels"]["text"]


@pytest.mark.parametrize("case", ["failed", "training_failing"])
def test_an_error_in_one_process_ends_all_with_its_message(run, case):
    _, content = run
    first, second = content[case, 2]
    assert "out of order" in second["text"] and second["error"] != "ProcessLost"
    assert first["error"] == "ProcessLost" and "process 1 of 2" in first["text"] and "out of order" in first["text"]
    assert "\n" not in first["text"] and first["seconds"] < 60


@pytest.mark.parametrize("case", ["killed", "training_killed"])
def test_a_killed_process_ends_the_others_and_nothing_is_half_written(run, case):
    folder, content = run
    first, second = content[case, 2]
    assert second == {} and first["error"] == "ProcessLost" and "\n" not in first["text"]
    assert first["seconds"] < 60 and not (folder / "never").exists()
    assert not list(folder.rglob(".*partial*"))


def test_a_process_that_hangs_is_given_up_after_the_time_that_the_environment_says(run):
    _, content = run
    first, _ = content["training_hung", 2]
    assert first["error"] == "ProcessLost" and "\n" not in first["text"] and 3 <= first["seconds"] < 60


@pytest.mark.parametrize("case", ALIKE)
def test_a_training_in_two_processes_ends_as_one_in_one(run, case):
    _, content = run
    alone, first, second = (said[case] for said in (*content["trained", 1], *content["trained", 2]))
    assert first == second
    relative, absolute = (2e-2, 2e-2) if case == "bf16" else (1e-4, 1e-6)
    for name, value in alone["weights"].items():
        torch.testing.assert_close(
            torch.tensor(first["weights"][name]), torch.tensor(value), rtol=relative, atol=absolute
        )
    assert first["judged"] == pytest.approx(alone["judged"], rel=relative)
    assert alone["weights"] != content["trained", 1][0]["start"]


def test_statistics_of_batchnorm_are_the_same_in_all_processes_after_a_training(run):
    _, content = run
    first, second = (said["statistics"] for said in content["trained", 2])
    assert first == second and any(first)


def test_the_command_line_prints_and_writes_in_the_first_process_alone(run):
    folder, content = run
    first, second = content["command", 2]
    assert first["code"] == second["code"] == 3  # with so few inputs
    assert "bundle: " in first["shown"] and second["shown"] == second["said"] == ""
    assert (folder / "out" / "bundle" / "plan.yaml").is_file()
    first, second = content["wrong_command", 2]
    assert first["code"] == second["code"] == 2
    assert first["said"].count("simprune: error:") == 1 and "error" not in second["said"]
