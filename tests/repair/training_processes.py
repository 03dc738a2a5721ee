"""A program that trains in two processes, which it forks; `python -m tests.repair.training_processes FOLDER`."""

import os
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from simprune.repair.training import finetune, state

CASES: dict[str, dict[str, Any]] = {
    "plain": {"lr": 0.02, "clip": 1.0, "ema": 0.5},
    "accumulated": {"lr": 0.02, "accumulate": 2, "optimizer": "adamw", "validation": True},
    "interrupted": {"lr": 0.02, "optimizer": "adamw"},
    "bf16": {"lr": 0.02, "precision": "bf16"},
}


class Interrupted(Exception):
    pass


def job(case: str, folder: Path | None = None) -> tuple[nn.Module, list[dict[str, Any]]]:
    """A model after its training, and the history; batches of 7, so that processes get unequal shares."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3)).eval()
    model = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3))
    x = torch.randn(155, 6)
    batches = list(zip(x.split(7), teacher(x).argmax(1).split(7), strict=True))
    options = dict(CASES[case])
    validation = batches[:3] if options.pop("validation", False) else None
    history = finetune(model, batches, teacher, epochs=2, validation=validation, folder=folder, **options)
    return model, history


def work(rank: int, port: int, folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo")
    save = state.State.save

    def dying(self: Any, place: Any, *args: Any, **kwargs: Any) -> None:
        save(self, place, *args, **kwargs)
        if place.steps == 5:
            raise Interrupted

    state.SECONDS = 0.0
    for case in CASES:
        if case == "interrupted":
            state.State.save = dying
            with suppress(Interrupted):
                job(case, folder / case)
            state.State.save = save
        model, history = job(case, folder / case)
        kept = torch.tensor([row["held_out"] for row in history] + [float(row["kept"]) for row in history])
        torch.save(model.state_dict() | {"history": kept}, folder / f"{case}-{rank}.pt")
    dist.destroy_process_group()


def main(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            work(rank, port, folder)
            os._exit(0)
        children.append(child)
    codes = [os.waitpid(child, 0)[1] for child in children]
    sys.exit(max(codes) and 1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
