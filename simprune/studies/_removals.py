"""Single removals: which there are in a network, plans that do nothing else, and what they cost the output."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import simprune as sp
from simprune.studies.frame import Images, Run, Subject
from simprune.studies.networks import agreement, answers, damage

STRUCTURES = ("channels", "heads", "blocks", "sub_blocks")
DEPTH = ("block", "half")  # kinds that block scores judge; scores of channels judge the others
WIDTH = ("channel", "channels", "head")


@dataclass(frozen=True)
class Removal:
    """One removal: of a block or half of one, or of some units of a group.

    Args:
        kind: block, half, channel (one), channels (a part of a layer) or head.
        name: of the module.
        units: that go; none for blocks.
        edit: the same, for a plan.
        share: of the network's multiply-adds that goes, about.
    """

    kind: str
    name: str
    units: tuple[int, ...]
    edit: sp.Edit
    share: float

    @property
    def key(self) -> list[Any]:
        """By which stored steps know it."""
        return [self.kind, self.name, list(self.units)]


def removals(redundancy: sp.Redundancy, most: Mapping[str, int], rng: np.random.Generator) -> list[Removal]:
    """Removals of a network, drawn at random: at most so many of every kind.

    Args:
        redundancy: of the network, with all of its structures.
        most: how many of every kind.
        rng: source of the draw.
    """
    every: dict[str, list[Removal]] = {kind: [] for kind in (*DEPTH, *WIDTH)}
    for entry in redundancy.blocks:
        kind = "half" if entry.block.replace == "zero" else "block"
        edit = sp.Edit("block", entry.name, replace=entry.block.replace)
        every[kind].append(Removal(kind, entry.name, (), edit, entry.share))
    for entry in redundancy.channels:
        group, heads = entry.group, entry.group.kind == "heads"
        choices: list[tuple[str, tuple[int, ...]]] = [
            ("head" if heads else "channel", (unit,)) for unit in range(group.size)
        ]
        if not heads:
            for part in (0.25, 0.5):
                drawn = rng.permutation(group.size)[: max(round(part * group.size), 2)]
                choices.append(("channels", tuple(sorted(int(unit) for unit in drawn))))
        for kind, units in choices:
            edit = sp.Edit(group.kind, group.name, group.expand(units), group.width)
            every[kind].append(Removal(kind, group.name, units, edit, entry.share * len(units) / group.size))
    drawn = []
    for kind, known in every.items():
        order = rng.permutation(len(known))[: most.get(kind, 0)]
        drawn += [known[number] for number in sorted(order)]
    return drawn


def plan_of(redundancy: sp.Redundancy, *edits: sp.Edit) -> sp.Plan:
    """A plan of these edits alone."""
    return sp.Plan(edits, redundancy.fingerprint, redundancy.inputs)


def outcome(
    run: Run, subject: Subject, redundancy: sp.Redundancy, removal: Removal, calibration: Any, epochs: int
) -> dict[str, float | None]:
    """Damage by one removal on the test inputs: before and after the repair, and after fine-tuning.

    Args:
        run: of the study.
        subject: the network.
        redundancy: of the network.
        removal: what goes.
        calibration: batches for the repair.
        epochs: of the fine-tuning; 0: none.

    Returns:
        Damages `removed`, `repaired`, `finetuned` (None without fine-tuning); `trial`, that of the removal on the
        calibration inputs; and `agreement` with the original after the repair.
    """
    images, plan = run.images, plan_of(redundancy, removal.edit)
    small = sp.apply(plan, subject.model)
    pixels = torch.cat([batch[0] for batch in calibration])
    result: dict[str, float | None] = {
        "trial": _damage(small, subject.model, pixels),
        "removed": _damage(small, subject.model, images.test),
    }
    sp.reconstruct(small, plan, subject.model, calibration)
    before = answers(subject.model, images.test)
    result["repaired"] = _damage(small, subject.model, images.test)
    result["agreement"] = agreement(answers(small, images.test), before)
    result["finetuned"] = None
    if epochs:
        sp.finetune(small, images.batches(size=64), teacher=subject.model, epochs=epochs, seed=run.seed)
        result["finetuned"] = _damage(small, subject.model, images.test)
    return result


def _damage(small: nn.Module, model: nn.Module, pixels: Tensor) -> float:
    return damage(answers(small, pixels), answers(model, pixels))


def calibration_of(images: Images, inputs: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Batches for calibration, drawn from the images to train on."""
    return list(images.batches(inputs, seed=seed))


def names(options: Sequence[str], known: Sequence[str]) -> list[str]:
    """The names that a study was asked for; all that are known where it was asked for none."""
    return list(options) or list(known)
