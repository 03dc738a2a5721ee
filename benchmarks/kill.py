"""Processes killed at random moments: what they leave is the old or the new state whole, and goes on to the same end.

Work runs in a process of its own, first undisturbed, then killed by SIGKILL at moments drawn from a seed. After every
kill the work is started again until it ends; its files must be those of the undisturbed run.

    python -m benchmarks.kill --kills 50 --seed 0 --seconds 600
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import simprune as sp


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
    for _ in range(40):
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


WORK = {work.__name__: work for work in (save, search, analyze)}
COMPARED = ("bundle/model.safetensors", "bundle/plan.yaml", "search/state.json", "plan.yaml")


def files(folder: Path) -> dict[str, bytes]:
    """The files of finished work that have to be the same."""
    return {name: (folder / name).read_bytes() for name in COMPARED if (folder / name).is_file()}


def start(name: str, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.kill", "--work", name, "--folder", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=600, help="after which no further process is killed")
    parser.add_argument("--work", choices=list(WORK), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    how = parser.parse_args()
    if how.work is not None:
        WORK[how.work](how.folder)
        return 0
    draw, faults, killed, began = random.Random(how.seed), [], dict.fromkeys(WORK, 0), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        wholes, seconds = {}, {}
        for work in WORK:
            first = time.monotonic()
            if start(work, Path(name, work)).wait():
                raise RuntimeError(f"{work} fails undisturbed")
            wholes[work], seconds[work] = files(Path(name, work)), time.monotonic() - first
        folder = Path(name, "killed")
        while sum(killed.values()) < how.kills and time.monotonic() - began < how.seconds:
            work = list(WORK)[sum(killed.values()) % len(WORK)]
            process = start(work, folder)
            try:
                process.wait(seconds[work] * draw.uniform(0.3, 1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                killed[work] += 1
            if (folder / "bundle").exists():
                sp.load(folder / "bundle", original)  # whole, or an error
            if start(work, folder).wait():
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
