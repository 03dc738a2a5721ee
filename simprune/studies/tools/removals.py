"""Single removals: which there are in a network, plans that do nothing else, and what they cost the output."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

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
        edit = sp.Edit("block", entry.name, replace=cast(Any, entry.block.replace))
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


class Bench:
    """A network under study, what it answers, and what removals cost it.

    Args:
        run: of the study.
        subject: the network.
        calibration: batches.
        structures: whose redundancy is estimated, with default scores.
    """

    def __init__(
        self, run: Run, subject: Subject, calibration: Sequence[tuple[Tensor, Tensor]],
        structures: Sequence[str] = STRUCTURES,
    ):  # fmt: skip
        self.run, self.subject, self.calibration = run, subject, calibration
        self.redundancy = sp.analyze(subject.model, calibration, structures=structures, seed=run.seed)
        self.pixels = torch.cat([batch[0] for batch in calibration])

    @cached_property
    def on_test(self) -> Tensor:
        """What the original answers to test images."""
        return answers(self.subject.model, self.run.images.test)

    @cached_property
    def on_calibration(self) -> Tensor:
        """What the original answers to calibration images."""
        return answers(self.subject.model, self.pixels)

    def outcome(self, removal: Removal, epochs: int = 0) -> dict[str, float | None]:
        """Damage by one removal on the test images: before and after the repair, and after fine-tuning.

        Args:
            removal: what goes.
            epochs: of the fine-tuning; 0: none.

        Returns:
            Damages `removed`, `repaired`, `finetuned` (None without fine-tuning); `trial`, that of the removal on the
            calibration images; and `agreement` with the original after the repair.
        """
        images, model, plan = self.run.images, self.subject.model, plan_of(self.redundancy, removal.edit)
        small = sp.apply(plan, model)
        result: dict[str, float | None] = {
            "trial": damage(answers(small, self.pixels), self.on_calibration),
            "removed": damage(answers(small, images.test), self.on_test),
        }
        sp.reconstruct(small, plan, model, self.calibration)
        repaired = answers(small, images.test)
        result["repaired"] = damage(repaired, self.on_test)
        result["agreement"] = agreement(repaired, self.on_test)
        result["finetuned"] = None
        if epochs:
            sp.finetune(small, images.batches(size=64), teacher=model, epochs=epochs, seed=self.run.seed)
            result["finetuned"] = damage(answers(small, images.test), self.on_test)
        return result


def calibration_of(images: Images, inputs: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Batches for calibration, drawn from the images to train on; ValueError where there are fewer."""
    if inputs > len(images.train):
        raise ValueError(f"inputs: expected at most {len(images.train)}, the images to train on; got {inputs}")
    return list(images.batches(inputs, seed=seed))


def names(options: Sequence[str], known: Sequence[str]) -> list[str]:
    """The names that a study was asked for; all that are known where it was asked for none."""
    return list(options) or list(known)
