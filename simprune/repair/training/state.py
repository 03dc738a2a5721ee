"""What an interrupted training goes on from: weights, optimizer, averages, random states, and its place."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core.checkpoint import Checkpoint
from simprune.core.processes import first, once
from simprune.core.store import refuse_links
from simprune.repair.training.optimizer import Average, restore, tensors_of
from simprune.repair.training.randomness import random_states

SECONDS = 60.0  # between two savings within an epoch
STAGE = "training"
STATE = "state"  # the folder of the state within that of a training
ROUND = "round-"  # with a number, the folder of the training of a round


@dataclass
class Place:
    """How far a training is, and what it has seen; whatever JSON can hold, which keeps every digit.

    `step`: steps that are done of the epoch. `steps`: of all epochs. `total`: sum of the losses of the epoch.
    `before`: what the model was judged by before the training. `best`: of the values then and after the epochs;
    `stays`: the epoch that it is of, 0 for none. `stale`: epochs since that one. `scale`: of losses in half precision.
    """

    epoch: int = 1
    step: int = 0
    steps: int = 0
    total: float = 0.0
    before: dict[str, float] = field(default_factory=dict)
    best: float | None = None
    stays: int = 0
    stale: int = 0
    finished: bool = False
    scale: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)


def forget(folder: Path | None) -> None:
    """Remove what trainings in a folder would go on from, when their results are stored elsewhere; logs stay.

    Their folders go as well where they are empty then. Of several processes the first alone removes.
    """
    if folder is None or not first():
        return
    for path in [*folder.glob(f"{ROUND}*/"), folder]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path / STATE, ignore_errors=True)
            if not any(path.iterdir()):
                path.rmdir()


class State:
    """The state of a training in a folder, written whole; without a folder nothing is stored.

    Several processes read the same folder, and the first of them writes; the models are judged together in between.

    Args:
        folder: of the training, in which the state has a folder of its own; None for none.
        context: settings that have to be the same for the training to go on.

    Raises:
        ValueError: for a folder of a training with other settings, or with links in its state.
    """

    def __init__(self, folder: Path | None, context: Mapping[str, Any]) -> None:
        self.checkpoint = None
        if folder is not None:
            once(lambda: refuse_links(folder / STATE))
            self.checkpoint = Checkpoint(folder / STATE, context, SECONDS)

    def save(
        self,
        place: Place,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: Average | None,
        best: Mapping[str, Tensor],
        always: bool,
    ) -> None:
        """Store everything; unless `always`, only if the last time is long ago. The first process alone writes."""
        if self.checkpoint is None or not first():
            return

        def tensors() -> dict[str, Tensor]:
            steps = optimizer.state_dict()["state"]
            numbers = {f"{index}.{key}": value for index, own in steps.items() for key, value in own.items()}
            parts: dict[str, Mapping[str, Any]] = {
                "model": tensors_of(model),
                "optimizer": {key: torch.as_tensor(value) for key, value in numbers.items() if value is not None},
                "average": {} if average is None else average.values,
                "best": best,
                "random": random_states(),
                "place": {"json": torch.tensor(list(json.dumps(asdict(place)).encode()), dtype=torch.uint8)},
            }
            return {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}

        if always:
            self.checkpoint.save(STAGE, tensors())
        else:
            self.checkpoint.save_now_and_then(STAGE, tensors)

    def load(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None
    ) -> tuple[Place, dict[str, Tensor], dict[str, Tensor]] | None:
        """Restore model, optimizer and average; the place, best weights, random states; None for a new one."""
        stored = None if self.checkpoint is None else self.checkpoint.load(STAGE)
        if stored is None:
            return None
        parts: dict[str, dict[str, Tensor]] = {"optimizer": {}, "best": {}, "average": {}}
        for key, value in stored.items():
            part, _, name = key.partition("/")
            parts.setdefault(part, {})[name] = value
        restore(model, parts["model"])
        if average is not None:
            for name, value in average.values.items():
                value.copy_(parts["average"][name])
        steps: dict[int, dict[str, Tensor]] = {}
        for key, value in parts["optimizer"].items():
            index, _, name = key.partition(".")
            steps.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({"state": steps, "param_groups": optimizer.state_dict()["param_groups"]})
        place = Place(**json.loads(bytes(parts["place"]["json"].tolist()).decode()))
        return place, parts["best"], parts["random"]
