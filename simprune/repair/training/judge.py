"""What a model is worth on inputs that its training does not see: the less, the better."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from simprune.core.batches import call_all, output_mask_of
from simprune.repair.training.held import LEAST, Held
from simprune.repair.training.objective import Objective
from simprune.repair.training.processes import Processes
from simprune.trace.context import eval_mode

TINY = 1e-300
SHARES = {"accuracy": ("accurate", "labelled"), "agreement": ("agreeing", "compared")}


class Judge:
    """Judges a model on held-out inputs, by its distance from the teacher's answers or by the loss of its training.

    Args:
        held: the inputs.
        objective: of the training, with its teacher.
        processes: which share the inputs out.
    """

    def __init__(self, held: Held, objective: Objective, processes: Processes | None = None) -> None:
        self.held, self.objective = held, objective
        self.processes = Processes() if processes is None else processes
        how, first = objective.how, next(iter(held.batches))
        alone = objective.teacher is not None and (how.distill == 1 or objective.labels(first) is None)
        self.by: Literal["teacher", "loss"] = "teacher" if alone else "loss"
        if how.select != "auto":
            self.by = how.select
        if self.by == "teacher" and objective.teacher is None:
            raise ValueError("finetune.select: expected a teacher, whose answers decide; got none; choose loss")
        self._totals: dict[str, float] | None = None
        if self.by == "loss":
            weights = [objective.weights(batch) for batch in held.batches]
            self._totals = {name: sum(own[name] for own in weights) for name in weights[0]}

    def figures(self, small: nn.Module) -> dict[str, float]:
        """`held_out`: the squared distance of the outputs from the teacher's as a share of the teacher's squares, or
        the loss; and where they are defined `accuracy`, `agreement`, and `answers`, the number behind them."""
        objective, sums = self.objective, dict[str, float]()

        def add(values: Mapping[str, float], counts: bool) -> None:
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value * counts

        with eval_mode(small), torch.no_grad():
            for batch in self.held.batches:
                part, counts = self.processes.part(batch)
                outputs, wanted = call_all(small, part), self._wanted(part)
                if self.by == "teacher":
                    add(_squares(outputs, wanted, output_mask_of(part)), counts)
                else:
                    add({"loss": float(objective.between(part, outputs, wanted, self._totals))}, counts)
                add(objective.right(part, outputs, wanted), counts)
        sums = self.processes.summed(sums)
        figures = {"held_out": sums["loss"] if self.by == "loss" else _distance(sums)}
        for name, (hits, count) in SHARES.items():
            if sums.get(count):
                figures |= {name: sums[hits] / sums[count], "answers": sums[count]}
        return figures

    def _wanted(self, batch: Any) -> dict[str, Tensor]:
        teacher = self.objective.teacher
        if teacher is None:
            return {}
        with eval_mode(teacher), torch.no_grad():
            return call_all(teacher, batch)


def _squares(outputs: Mapping[str, Tensor], wanted: Mapping[str, Tensor], mask: Tensor | None) -> dict[str, float]:
    """Squared changes and squares of every output, without those at padding."""
    sums: dict[str, float] = {}
    for name, value in outputs.items():
        target = wanted[name].to(value.device)
        if mask is not None and value.ndim == 3 and mask.shape == value.shape[:2]:
            real = mask.to(value.device)
            value, target = value[real], target[real]
        sums[f"apart {name}"] = float((value.float() - target.float()).square().sum(dtype=torch.float64))
        sums[f"whole {name}"] = float(target.float().square().sum(dtype=torch.float64))
    return sums


def _distance(sums: Mapping[str, float]) -> float:
    names = [name.removeprefix("apart ") for name in sums if name.startswith("apart ")]
    return sum(sums[f"apart {name}"] / max(sums[f"whole {name}"], TINY) for name in names) / len(names)


def drifting(before: Mapping[str, float], after: Mapping[str, float]) -> str | None:
    """A warning where accuracy has risen while agreement with the original has fallen, both beyond chance.

    >>> drifting({"accuracy": 0.8, "agreement": 0.9}, {"accuracy": 0.9, "agreement": 0.8, "answers": 400})
    'accuracy rose from 80.0 to 90.0 % while agreement with the original fell from 90.0 to 80.0 %'
    """
    changes: dict[str, float] = {}
    for name in SHARES:
        if name not in before or name not in after:
            return None
        chance = math.sqrt(max(after[name] * (1 - after[name]), 0.25 / after["answers"]) / after["answers"])
        change = after[name] - before[name]
        changes[name] = change if abs(change) > chance else 0.0
    if not changes["accuracy"] > 0 > changes["agreement"]:
        return None
    accuracy, agreement = (f"from {100 * before[name]:.1f} to {100 * after[name]:.1f} %" for name in SHARES)
    return f"accuracy rose {accuracy} while agreement with the original fell {agreement}"


def notes_of(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """What to say of a training: that it was undone, that an earlier epoch stays, what it was judged on, its drift.

    Args:
        history: what `simprune.finetune` returned.

    >>> notes_of([{"epoch": 1, "held_out": 0.2, "before": 0.3, "kept": True, "judged_on": "held out", "by": "teacher"}])
    []
    """
    if not history:
        return []
    notes, first, last = [], history[0], history[-1]
    stays = next((row for row in history if row["kept"]), None)
    what = {
        "teacher": "distance from the original's answers (squares, as a share of the answers' squares)",
        "loss": "loss",
    }[first["by"]]
    on = {"validation": "validation inputs", "held out": "held-out training inputs", "train": "training inputs"}
    inputs = on[first["judged_on"]]
    if stays is None:
        least = min(row["held_out"] for row in history)
        notes.append(
            f"training did not help and was undone: the {what} on {inputs} was {first['before']:.3g} before it, and "
            f"{least:.3g} or more after its epochs"
        )
    elif not last["kept"]:
        notes.append(f"epoch {stays['epoch']} of {len(history)} stays, after which {inputs} fared worse")
    if first["judged_on"] == "train":
        notes.append(
            f"fewer than {LEAST} training inputs could be held out, so epochs were judged on inputs that were trained "
            "on; give more, or a validation split"
        )
    if first.get("never_met"):
        notes.append(
            "training inputs differ from walk to walk, as by augmentation, so that those held out were trained on in "
            "other forms; give a validation split"
        )
    drift = (stays or last).get("drift")
    if drift is not None:
        notes.append(f"{drift}, on {inputs}: a larger finetune.distill follows the original more closely")
    return notes
