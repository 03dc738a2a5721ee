"""Runs cases in 1, 2 and 3 processes; a program of its own.

What one process does runs in the program itself, which imports everything so, before it forks for the others.

`python -m tests.processes.host FOLDER [CASE ...]` writes what every process of a case returns to
FOLDER/CASE-COUNT-RANK.json; all cases by default.
"""

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import simprune as sp
from simprune.cli.main import main
from simprune.core import processes
from simprune.trace import timing
from simprune.zoo.residual import ResidualCNN
from tests.networks import Tokens
from tests.processes.trainings import (
    at_call,
    failing,
    out_of_order,
    trained,
    training_failing,
    training_hung,
    training_killed,
)

USERS = """\
import torch

from simprune.zoo.residual import ResidualCNN


def model():
    torch.manual_seed(0)
    return ResidualCNN(in_channels=1, widths=(4, 6), depths=(1, 1), classes=3).eval()


def data():
    images = torch.randn(24, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    return {"calibration": list(images.split(8)), "test": list(images.split(10))}
"""
RECIPE = """\
defaults: [base, {model: function}, {data: function}, _self_]
model: {function: "users_two:model"}
data: {function: "users_two:data"}
budget: {macs: 0.6}
"""
WAIT = 120  # seconds for which the program waits for a case


def network() -> nn.Module:
    torch.manual_seed(0)
    return ResidualCNN(in_channels=1, widths=(4, 6), depths=(2, 1), classes=5).eval()


def images(seed: int = 1, inputs: int = 58) -> list[torch.Tensor]:
    """Seven batches of 8 inputs and one of 2."""
    return list(torch.randn(inputs, 1, 6, 6, generator=torch.Generator().manual_seed(seed)).split(8))


def compress(folder: Path) -> dict[str, Any]:
    """The whole path, with finalists, and a bundle."""
    planner = {"name": "greedy", "finalists": 2}
    result = sp.compress(network(), calibration=images(), test=images(2), budget={"macs": 0.6}, planner=planner)
    written = sp.save(folder / f"bundle-{processes.count()}", result) if processes.count() < 3 else None
    rows = [{key: row[key] for key in ("name", "agreement", "damage", "macs")} for row in result.report["stages"]]
    verdict = result.verdict.to_dict() if result.verdict else {}
    return {
        "plan": result.plan.to_yaml(),
        "weights": {name: value.tolist() for name, value in result.model.state_dict().items()},
        "gates": [{key: gate[key] for key in ("measure", "value", "outcome")} for gate in verdict["gates"]],
        "stages": rows,
        "latency": [row["latency_ms"] for row in result.report["stages"]],
        "bundle": str(written),
    }


def tokens(folder: Path) -> dict[str, Any]:
    """A network on tokens, an analysis with a folder, and a repair that every process does whole."""
    torch.manual_seed(0)
    model = Tokens().eval()
    x = torch.randn(14, 5, 6, generator=torch.Generator().manual_seed(3))
    batches = list(x.split(4))
    redundancy = sp.analyze(model, batches, folder=folder / f"analysis-{processes.count()}")
    plan = sp.plan(redundancy, budget={"macs": 0.7})
    small = sp.apply(plan, model)
    sp.reconstruct(small, plan, model, batches, "blockwise")
    verdict = sp.validate(model, small, batches)
    return {
        "plan": plan.to_yaml(),
        "weights": {name: value.tolist() for name, value in small.state_dict().items()},
        "gates": [gate.value for gate in verdict.results],
    }


def different(folder: Path) -> dict[str, Any]:
    """One process has been given other batches, then other weights."""
    batches = failing(lambda: sp.analyze(network(), images(1 + processes.rank())))
    model = network()
    next(model.parameters()).data += processes.rank()
    weights = failing(lambda: sp.analyze(model, images()))
    labelled = [(x, torch.full((len(x),), processes.rank())) for x in images()]
    return {"batches": batches, "weights": weights, "labels": failing(lambda: sp.finetune(network(), labelled))}


def failed(folder: Path) -> dict[str, Any]:
    """The network fails in one process, in the middle of its batches."""
    model = network()
    at_call(model, 4, lambda _, x: len(x) == 8, out_of_order)
    return failing(lambda: sp.compress(model, calibration=images(), budget={"macs": 0.6}))


def killed(folder: Path) -> dict[str, Any]:
    """One process is killed, in the middle of its batches."""
    model = network()
    at_call(model, 4, lambda _, x: len(x) == 8, lambda: os.kill(os.getpid(), signal.SIGKILL))
    return failing(lambda: sp.save(folder / "never", sp.compress(model, calibration=images(), budget={"macs": 0.6})))


def command(folder: Path) -> dict[str, Any]:
    """The command line as torchrun starts it."""
    os.chdir(folder)
    with redirect_stdout(StringIO()) as shown, redirect_stderr(StringIO()) as said:
        code = main(["compress", "recipe=two.yaml", "hydra.run.dir=out"])
    return {"code": code, "shown": shown.getvalue(), "said": said.getvalue()}


def wrong_command(folder: Path) -> dict[str, Any]:
    """A budget that cannot be reached."""
    os.chdir(folder)
    with redirect_stderr(StringIO()) as said:
        code = main(["compress", "recipe=two.yaml", "budget.macs=0.001", "hydra.run.dir=wrong"])
    return {"code": code, "said": said.getvalue()}


CASES = (
    (wrong_command, (1, 2)), (compress, (1, 2, 3)), (tokens, (1, 2)), (trained, (1, 2)), (different, (2,)),
    (failed, (2,)), (killed, (2,)), (command, (2,)), (training_failing, (2,)), (training_killed, (2,)),
    (training_hung, (2,)),
)  # fmt: skip
BY_ITSELF = (command, wrong_command)  # they begin the group of processes


def in_process(case: Callable[[Path], dict[str, Any]], folder: Path, count: int, rank: int, port: int) -> None:
    torch.set_num_threads(1)  # threads do not survive a fork
    timing.ROUNDS = 1
    if count > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    try:
        if count > 1 and case not in BY_ITSELF:
            dist.init_process_group("gloo")
        content = case(folder)
    except BaseException:
        content = {"defect": traceback.format_exc()}
    (folder / f"{case.__name__}-{count}-{rank}.json").write_text(json.dumps(content))


def host(folder: Path, names: Sequence[str]) -> None:
    (folder / "users_two.py").write_text(USERS)
    (folder / "two.yaml").write_text(RECIPE)
    for case, counts in CASES:
        if names and case.__name__ not in names:
            continue
        for count in counts:
            if count == 1:
                in_process(case, folder, 1, 0, 0)
            else:
                fork(case, folder, count)


def fork(case: Callable[[Path], dict[str, Any]], folder: Path, count: int) -> None:
    """Run a case in several processes, and wait for them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    forking = multiprocessing.get_context("fork")
    ranks = [forking.Process(target=in_process, args=(case, folder, count, rank, port)) for rank in range(count)]
    for process in ranks:
        process.start()
    until = time.monotonic() + WAIT
    for process in ranks:
        process.join(max(0.0, until - time.monotonic()))
        if process.is_alive():
            process.kill()


if __name__ == "__main__":
    host(Path(sys.argv[1]), sys.argv[2:])
