"""A training after which held-out calibration inputs are answered less like the original does is undone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from simprune.core.batches import rows_at
from simprune.core.holdout import held_out
from simprune.core.pieces import pieces
from simprune.repair.training.held import LEAST, MOST
from simprune.repair.training.optimizer import restore, tensors_of
from simprune.settings import Finetune
from simprune.trace.answers import Answers, agreement, answer


@dataclass(frozen=True)
class Guard:
    """A model before its training, with its damage on calibration inputs that are held out of the refits.

    Trainings that are to follow labels rather than the original, with `distill=0` or `select=loss`, or to pass gates,
    with `until_passed`, are not judged.

    Args:
        small: the repaired model.
        tensors: a copy of its weights; empty where the training is not judged.
        inputs: batches of the held-out inputs.
        count: the number of these inputs.
        original: the original's answers to them; None where there are too few.
        damage: of the model on them, before the training.
    """

    small: nn.Module
    tensors: dict[str, Tensor]
    inputs: Sequence[Any]
    count: int
    original: Answers | None = None
    damage: float | None = None

    @classmethod
    def of(cls, small: nn.Module, teacher: nn.Module, calibration: Iterable, settings: Mapping[str, Any]) -> "Guard":
        """The guard of a training that begins.

        Args:
            small: the repaired model.
            teacher: the original.
            calibration: batches, of which about every fourth input is held out, 512 at most.
            settings: of the training, as `simprune.finetune` takes them.
        """
        how = Finetune.of(settings)
        if how.distill == 0 or how.select == "loss" or how.until_passed:
            return cls(small, {}, (), LEAST)
        inputs, count = _held_out(calibration)
        if count < LEAST:
            return cls(small, {}, (), count)
        original = answer(teacher, inputs)
        return cls(small, tensors_of(small), inputs, count, original, _damage(small, inputs, original))

    def end(self, history: Sequence[dict[str, Any]]) -> list[str]:
        """Undo the training if it has lost, and say so; the rows of its history then say that none of it stays.

        Args:
            history: what `simprune.finetune` returned.
        """
        if not any(row.get("kept", True) for row in history):
            return []  # it was undone already
        if self.count < LEAST:
            return [
                f"of the calibration inputs {self.count} are held out, fewer than {LEAST}, so whether training lost on "
                "them cannot be judged; give more calibration inputs"
            ]
        if self.original is None or self.damage is None:
            return []
        after = _damage(self.small, self.inputs, self.original)
        if after <= self.damage:
            return []
        restore(self.small, self.tensors)
        for row in history:
            row["kept"] = False
        return [
            f"training was undone: the damage on {self.count} held-out calibration inputs was {self.damage:.3g} before "
            f"it and {after:.3g} after it; to follow labels all the same, set finetune.select to loss"
        ]


def _damage(model: nn.Module, inputs: Sequence[Any], original: Answers) -> float:
    damage = agreement(answer(model, inputs), original)["damage"]
    return 0.0 if damage is None else damage


def _held_out(calibration: Iterable) -> tuple[list[Any], int]:
    """Batches of the held-out inputs, and their number."""
    batches, count, first = [], 0, 0
    for batch in calibration:
        inputs = sum(1 for _ in pieces(batch, 1))
        held = held_out(first, inputs)
        if bool(held.any()):
            batches.append(rows_at(batch, held) if inputs > 1 else batch)
            count += int(held.sum())
        first += inputs
        if count >= MOST:
            break
    return batches, count
