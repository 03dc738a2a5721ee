"""Trainings in several processes: those that end as in one, and those in which a process fails, dies, or hangs."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

import simprune as sp
from simprune.core import processes
from simprune.repair.training import state

ALIKE: dict[str, dict[str, Any]] = {
    "plain": {"clip": 1.0, "ema": 0.5},
    "accumulated": {"accumulate": 2, "optimizer": "adamw", "validation": True},
    "interrupted": {"optimizer": "adamw"},
    "bf16": {"precision": "bf16"},
}


class Interrupted(Exception):
    pass


def network(*norm: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), *(norm or (nn.LayerNorm(16),)), nn.ReLU(), nn.Linear(16, 3))


def batches(teacher: nn.Module, size: int = 7) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """155 inputs with the answers of the teacher; in batches of 7 processes get unequal shares."""
    x = torch.randn(155, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return list(zip(x.split(size), teacher(x).argmax(1).split(size), strict=True))


def train(model: nn.Module, **options: Any) -> list[dict[str, Any]]:
    teacher = network().eval()
    with torch.no_grad():
        next(teacher.parameters()).mul_(1.5)
    data = batches(teacher)
    validation = data[:3] if options.pop("validation", False) else None
    return sp.finetune(model, data, teacher, epochs=2, lr=0.02, validation=validation, **options)


def trained(folder: Path) -> dict[str, Any]:
    """Every way of training, one after another: what the model and the history are at its end."""
    start = {name: value.tolist() for name, value in network().state_dict().items()}
    ends: dict[str, Any] = {"start": start}
    save, state.SECONDS = state.State.save, 0.0
    for case, options in ALIKE.items():
        own = folder / f"{case}-{processes.count()}"
        if case == "interrupted":
            state.State.save = _interrupted_at_fifth_step(save)
            with suppress(Interrupted):
                train(network(), folder=own, **options)
            state.State.save = save
        model = network()
        history = train(model, folder=own, **options)
        weights = {name: value.tolist() for name, value in model.state_dict().items()}
        ends[case] = {"weights": weights, "judged": [row["held_out"] for row in history]}
    model = network(nn.BatchNorm1d(16))
    sp.finetune(model, batches(network().eval(), size=40), epochs=1, batchnorm="train")
    ends["statistics"] = model[1].running_mean.tolist()
    return ends


def _interrupted_at_fifth_step(save: Callable[..., None]) -> Callable[..., None]:
    def dying(self: Any, place: Any, *args: Any, **kwargs: Any) -> None:
        save(self, place, *args, **kwargs)
        if place.steps == 5:
            raise Interrupted

    return dying


def training_failing(folder: Path) -> dict[str, Any]:
    """The model fails in one process, at its fourth step; then the training goes on from the folder, in all of them."""
    model = network()
    at_call(model, 4, lambda module, _: module.training, out_of_order)
    return failing(lambda: train(model, folder=folder / "failing"))


def training_killed(folder: Path) -> dict[str, Any]:
    """One process is killed while the model is judged after an epoch."""
    model = network()
    at_call(model, 9, lambda module, _: not module.training, lambda: os.kill(os.getpid(), signal.SIGKILL))
    return failing(lambda: train(model, folder=folder / "killed", validation=True))


def training_hung(folder: Path) -> dict[str, Any]:
    """One process does nothing any more, until the other one has ended."""

    def wait() -> None:
        while not list(folder.glob("training_hung-2-0.json")):
            time.sleep(0.1)

    os.environ[processes.PATIENCE] = "3"
    model = network()
    at_call(model, 4, lambda module, _: module.training, wait)
    return failing(lambda: train(model))


def at_call(
    model: nn.Module, number: int, counts: Callable[[nn.Module, torch.Tensor], bool], act: Callable[[], None]
) -> None:
    """In process 1, do something when the network runs for so many times on what counts: (module, inputs) -> bool."""
    calls: list[int] = []

    def count(module: nn.Module, args: tuple) -> None:
        calls.extend([1] if counts(module, args[0]) else [])
        if processes.rank() == 1 and len(calls) == number and counts(module, args[0]):
            act()

    model.register_forward_pre_hook(count)


def out_of_order() -> None:
    raise RuntimeError("out of order")


def failing(function: Callable[[], Any]) -> dict[str, Any]:
    """The error that a function ends with, and how long it takes."""
    start = time.monotonic()
    try:
        function()
    except Exception as error:
        return {"error": type(error).__name__, "text": str(error), "seconds": time.monotonic() - start}
    return {"error": None}
