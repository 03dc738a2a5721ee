"""Processes killed at random moments: what they leave is the old or the new state whole, and goes on to the same end.

Work runs in a process of its own, first undisturbed, then killed by SIGKILL at moments drawn from a seed. After every
kill the work is started again until it ends; its files must be those of the undisturbed run.

    python -m benchmarks.kill --kills 50 --seed 0 --seconds 600
"""

import argparse
import io
import json
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from torch import nn

import simprune as sp
from simprune.cli.main import main as main_of_simprune
from simprune.core.store import write_whole


def original() -> nn.Module:
    """The network of all work."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


def data() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs with the answers of the original."""
    x = torch.randn(256, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return [(rows, original()(rows).argmax(1)) for rows in x.split(64)]


def save(folder: Path) -> None:
    """The same bundle over and over, in place of itself."""
    batches = data()
    result = sp.compress(original(), calibration=batches, budget={"macs": 0.5})
    for _ in range(10):
        sp.save(folder / "bundle", result, overwrite=True)


def search(folder: Path) -> None:
    """The smallest model that passes, with fine-tuning between the checks."""
    batches = data()
    result = sp.compress(
        original(), calibration=batches, train=batches, test=batches, budget="smallest", finetune=2,
        gates=[sp.Gate("disagreement", limit=0.2)], search={"tolerance": 0.05}, folder=folder / "search",
    )  # fmt: skip
    sp.save(folder / "bundle", result, overwrite=True)


def analyze(folder: Path) -> None:
    """An analysis that stores its stages."""
    redundancy = sp.analyze(original(), data(), folder=folder / "analysis")
    sp.plan(redundancy, {"macs": 0.5}).save(folder / "plan.yaml")


def compress(folder: Path) -> None:
    """A smaller model, trained in a folder, from which an interrupted training goes on."""
    batches = data()
    result = sp.compress(
        original(), calibration=batches, train=batches, budget={"macs": 0.5}, finetune=3, folder=folder / "training"
    )
    sp.save(folder / "bundle", result, overwrite=True)


def finetune(folder: Path) -> None:
    """A training by itself, stored after every step."""
    small = original()
    with patch("simprune.repair.training.state.SECONDS", 0.0):
        sp.finetune(small, data(), epochs=3, folder=folder / "training")
    write_whole(folder / "trained.safetensors", lambda path: save_file(small.state_dict(), path))


def study(folder: Path) -> None:
    """A study of small networks that it trains, with its pages."""
    small = {"seeds": 2, "training": 40, "inputs": 100, "counts": [], "degrees": [3], "edges": [5]}
    findings = sp.study("graph_views", folder=folder, architectures=["vgg"], **small)
    write_whole(folder / "tables.json", json.dumps(findings.to_dict()["tables"]))


def sweep(folder: Path) -> None:
    """Plans for several budgets, each a job of one sweep on the command line."""
    own = folder / "own.yaml"
    write_whole(own, RECIPE)
    if code := main_of_simprune(
        ["plan", "-m", f"recipe={own}", "budget.macs=0.4,0.6", f"hydra.sweep.dir={folder}/jobs"]
    ):
        raise RuntimeError(f"the sweep ends with {code}")


RECIPE = """defaults: [base, model: function, data: function, _self_]
model: {function: "benchmarks.kill:original"}
data: {function: "benchmarks.kill:calibration"}
device: cpu
"""
WORK = {work.__name__: work for work in (save, search, analyze, compress, finetune, sweep, study)}
COMPARED = (
    "bundle/model.safetensors", "bundle/plan.yaml", "search/state.json", "plan.yaml", "trained.safetensors",
    "jobs/0/plan.yaml", "jobs/1/plan.yaml", "tables.json",
)  # fmt: skip


def calibration() -> dict[str, list[torch.Tensor]]:
    """The inputs of the sweep."""
    return {"calibration": [rows for rows, _ in data()]}


def files(folder: Path) -> dict[str, bytes]:
    """The files of finished work that have to be the same."""
    return {name: (folder / name).read_bytes() for name in COMPARED if (folder / name).is_file()}


def start(name: str, folder: Path) -> int:
    """Begin the work in a process of its own, which has all modules already; returns its number."""
    if process := os.fork():
        return process
    code = 1
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        WORK[name](folder)
        code = 0
    finally:
        os._exit(code)


def ended(process: int, seconds: float = math.inf) -> int | None:
    """The code with which a process ends; None where it still runs after so many seconds."""
    began = time.monotonic()
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() - began > seconds:
            return None
        time.sleep(0.002)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=600, help="after which no further process is killed")
    how = parser.parse_args()
    torch.set_num_threads(1)  # threads do not survive a fork
    draw, faults, killed, began = random.Random(how.seed), [], dict.fromkeys(WORK, 0), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        wholes, seconds = {}, {}
        for work in WORK:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                Path(name, "first", work).mkdir(parents=True)
                WORK[work](Path(name, "first", work))  # here, so that all processes have its modules already
            first = time.monotonic()
            if ended(start(work, Path(name, work))):
                raise RuntimeError(f"{work} fails undisturbed")
            wholes[work], seconds[work] = files(Path(name, work)), time.monotonic() - first
            if not wholes[work]:
                raise RuntimeError(f"{work} leaves no file")
        folder = Path(name, "killed")
        while sum(killed.values()) < how.kills and time.monotonic() - began < how.seconds:
            work = list(WORK)[sum(killed.values()) % len(WORK)]
            process = start(work, folder)
            if ended(process, seconds[work] * draw.uniform(0.05, 1)) is None:
                os.kill(process, signal.SIGKILL)
                killed[work] += ended(process) == -signal.SIGKILL
            if (folder / "bundle").exists():
                sp.load(folder / "bundle", original)  # whole, or an error
            if ended(start(work, folder)):
                faults.append(f"{work}: cannot go on after a kill")
            elif files(folder) != wholes[work]:
                faults.append(f"{work}: ends otherwise after a kill")
            if left := [path.name for path in folder.rglob(".*partial*")]:
                faults.append(f"{work}: {left} is left")
            shutil.rmtree(folder, ignore_errors=True)
    print(f"{killed} kills in {time.monotonic() - began:.0f} s, {len(faults)} faults")
    print(*faults, sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
