"""What a model is worth on inputs that its training does not see, and which epochs of a training may stay."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from simprune.core.batches import call_all
from simprune.repair.training.damage import Damage
from simprune.repair.training.held import LEAST, Held
from simprune.repair.training.objective import Objective
from simprune.repair.training.processes import Processes
from simprune.trace.context import eval_mode

WHAT = {"teacher": "damage", "loss": "loss"}  # that decides, by what it is taken from
SHARES = {"accuracy": ("accurate", "labelled"), "agreement": ("agreeing", "compared")}
UNSEEN = (  # an original that knows the inputs by heart answers them better than its training could
    "; if the original was trained on these inputs, give a validation split that it has not seen, or set "
    "finetune.select to last"
)
Outputs = Mapping[str, Tensor]


class Judge:
    """Judges a model on held-out inputs, by its damage against the teacher or by the loss of its training.

    On held-out calibration inputs the damage must not grow, unless labels alone are followed or `select` is the loss
    or the last epoch.

    Args:
        held: the inputs.
        objective: of the training, with its teacher.
        processes: which share the inputs out.

    Raises:
        ValueError: where the teacher is to decide, and there is none.
    """

    def __init__(self, held: Held, objective: Objective, processes: Processes | None = None) -> None:
        self.held, self.objective = held, objective
        self.processes = Processes() if processes is None else processes
        how, labels = objective.how, objective.labels(next(iter(held.batches)))
        labelled = bool(labels)
        alone = objective.teacher is not None and (how.distill == 1 or not labelled)
        self.by: Literal["teacher", "loss"] = "teacher" if alone else "loss"
        if how.select in ("teacher", "loss"):
            self.by = how.select
        if objective.teacher is None and not labelled:
            raise ValueError(
                "validation: expected labels, as there is no teacher to follow; got none; give one of them"
            )
        missing = [name for name in objective.labelled if name not in labels]
        if objective.teacher is None and missing:
            raise ValueError(f"validation: expected labels of {', '.join(missing)}, as train has them; got none")
        if self.by == "teacher" and objective.teacher is None:
            raise ValueError("finetune.select: expected a teacher, whose answers decide; got none; choose loss")
        self.damage = self.guard = self._totals = None
        if self.by == "teacher" and objective.teacher is not None:
            self.damage = Damage(objective.teacher, held.batches, how.output_weights)
        else:
            weights = [objective.weights(batch) for batch in held.batches]
            self._totals = {name: sum(own[name] for own in weights) for name in weights[0]}
        follows = objective.teacher is not None and how.select != "loss" and (how.distill > 0 or not labelled)
        self.calibration = held.calibration if follows else []
        if objective.teacher is not None and self.calibration and held.calibration_inputs >= LEAST:
            self.guard = Damage(objective.teacher, self.calibration, how.output_weights)

    def figures(self, small: nn.Module) -> dict[str, float]:
        """What a model is worth: the less, the better.

        Returns:
            `held_out`: the damage or the loss on held-out inputs; `accuracy`, `agreement`, and `answers`, the number
            behind them, where they are defined; `damage`: on held-out calibration inputs, `calibration_inputs` of them.
        """
        sums = self._sums(small, self.held.batches, self._judged)
        figures = {"held_out": sums["loss"] if self.damage is None else self.damage.of(sums)}
        for name, (hits, count) in SHARES.items():
            if sums.get(count):
                figures |= {name: sums[hits] / sums[count], "answers": sums[count]}
        if self.calibration:
            figures["calibration_inputs"] = self.held.calibration_inputs
        if self.guard is not None:
            figures["damage"] = self.guard.of(self._sums(small, self.calibration, self.guard.squares))
        return figures

    def before(self, small: nn.Module) -> dict[str, float]:
        """The same of a model that is not trained yet; ValueError where they are no numbers to compare with."""
        figures = self.figures(small)
        if not math.isfinite(figures["held_out"]):
            raise ValueError(
                f"finetune: the {WHAT[self.by]} before the training is {figures['held_out']}, so no epoch can be "
                "judged; look for infinite inputs"
            )
        return figures

    def row(self, figures: Mapping[str, float], before: Mapping[str, float]) -> dict[str, Any]:
        """What is said of an epoch, from the figures after it and from before the training."""
        row: dict[str, Any] = {**figures, "before": before["held_out"], "by": self.by, "judged_on": self.held.source}
        row |= {"damage_before": before["damage"]} if "damage" in before else {}
        row |= {"never_met": True} if self.held.keys and not self.held.met else {}
        drift = drifting(before, figures)
        return row if drift is None else row | {"drift": drift}

    def _judged(self, batch: Any, outputs: Outputs, wanted: Outputs) -> dict[str, float]:
        """What adds up to the figures, of a part of the held-out inputs."""
        if self.damage is not None:
            sums = self.damage.squares(batch, outputs, wanted)
        else:
            sums = {"loss": float(self.objective.between(batch, outputs, wanted, self._totals))}
        return sums | self.objective.right(batch, outputs, wanted)

    def _sums(
        self, small: nn.Module, batches: Iterable, parts: Callable[[Any, Outputs, Outputs], Mapping[str, float]]
    ) -> dict[str, float]:
        """Sums of what a function tells of batches, over all of them and all processes."""
        sums, teacher = dict[str, float](), self.objective.teacher
        with eval_mode(small), torch.no_grad():
            for batch in batches:
                part, counts = self.processes.part(batch)
                outputs, wanted = call_all(small, part), dict[str, Tensor]()
                if teacher is not None:
                    with eval_mode(teacher):
                        wanted = call_all(teacher, part)
                for name, value in parts(part, outputs, wanted).items():
                    sums[name] = sums.get(name, 0.0) + value * counts
        return self.processes.summed(sums)


def better(figures: Mapping[str, float], best: float | None, before: Mapping[str, float]) -> bool:
    """Whether an epoch is to stay.

    Args:
        figures: of the model after it.
        best: the least `held_out` so far.
        before: figures from before the training.

    >>> better({"held_out": 0.1, "damage": 0.3}, 0.2, {"held_out": 0.2, "damage": 0.2})
    False
    """
    lost = not figures.get("damage", 0.0) <= before.get("damage", 0.0)  # also where it is no number
    return not lost and (best is None or figures["held_out"] < best)


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
    what = WHAT[first["by"]]
    on = {"validation": "validation inputs", "held out": "held-out training inputs", "train": "training inputs"}
    inputs = on[first["judged_on"]]
    helped = [row for row in history if row["held_out"] < row["before"]]
    if stays is None and helped:
        notes.append(
            f"training was undone: the damage on {first['calibration_inputs']} held-out calibration inputs was "
            f"{first['damage_before']:.3g} before it, and {min(row['damage'] for row in helped):.3g} or more after "
            f"epochs that helped on {inputs}; to follow labels all the same, set finetune.select to loss"
        )
    elif stays is None:
        numbers = [row["held_out"] for row in history if math.isfinite(row["held_out"])]
        after = f"{min(numbers):.3g} or more" if numbers else "no finite number"
        notes.append(
            f"training did not help and was undone: the {what} on {inputs} was {first['before']:.3g} before it, and "
            f"{after} after its epochs" + (UNSEEN if first["judged_on"] != "validation" else "")
        )
    elif not last["kept"]:
        notes.append(f"epoch {stays['epoch']} of {len(history)} stays, after which {inputs} fared worse")
    if last["kept"] and last.get("damage", 0.0) > last.get("damage_before", math.inf):
        notes.append(
            f"the last epoch stays, although the damage on {last['calibration_inputs']} held-out calibration inputs "
            f"rose from {last['damage_before']:.3g} to {last['damage']:.3g}"
        )
    if "diverged" in last:
        notes.append(
            f"training ended in step {last['diverged']}, where its loss was no finite number; choose a smaller "
            "finetune.lr"
        )
    if first["judged_on"] == "train":
        notes.append(
            f"fewer than {LEAST} training inputs could be held out, so epochs were judged on inputs that were trained "
            "on; give more, or a validation split"
        )
    if first.get("never_met") and "diverged" not in first:
        notes.append(
            "training inputs differ from walk to walk, as by augmentation, so that those held out were trained on in "
            "other forms; give a validation split"
        )
    if "damage" not in first and "calibration_inputs" in first:
        notes.append(
            f"of the calibration inputs {first['calibration_inputs']} are held out, fewer than {LEAST}, so whether "
            "training lost on them cannot be judged; give more calibration inputs"
        )
    drift = (stays or last).get("drift")
    if drift is not None:
        notes.append(f"{drift}, on {inputs}: a larger finetune.distill follows the original more closely")
    return notes
