"""Trial removals: what plans of one kind of structure cost the output, once repaired, on inputs that nothing saw.

A score says how structures of a kind compare; a trial says what that comes to. It scales the damage of all structures
of the kind, so that blocks, channels and heads are weighed in what they really cost: the squared change of the output
as a share of its variance.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import exp, log

import numpy as np
import torch
from torch import nn

from simprune.batches import checked, device_of
from simprune.example import from_description
from simprune.planning.constraints import Constraints
from simprune.planning.make import plan
from simprune.planning.space import Choice, Space
from simprune.redundancy import Redundancy, TrialRemoval
from simprune.stages import Recovery, Stages, answer, relative_error
from simprune.surgery.reconstruct import Method

TINY = 1e-12  # damage below which there is nothing to compare


def calibrate(
    redundancy: Redundancy,
    model: nn.Module,
    calibration: Iterable,
    shares: Sequence[float] = (0.2,),
    method: Method = "least_squares",
) -> Redundancy:
    """The same redundancy with damages as they were measured, and the trials behind that.

    `shares`: which part of all macs that structures of a kind could save a trial removes, each in (0, 1). An eighth of
    the calibration batches is held out, the rest repair by `method`. The damages of a kind are multiplied by the
    geometric mean of measured over expected. Cost: per kind and share one edit and one repair. Raises ValueError for a
    share outside (0, 1) and for fewer than two batches.
    """
    for share in shares:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
            raise ValueError(f"trials: shares must lie between 0 and 1; got {share!r}")
    batches = list(checked(calibration, "calibration"))
    if shares and len(batches) < 2:
        raise ValueError(f"trials need two calibration batches or more, as one is held out; got {len(batches)}")
    held = max(1, len(batches) // 8)
    wanted = answer(model, batches[:held]).logits if shares else torch.empty(0)
    example = from_description(redundancy.inputs, device_of(model))
    trials: list[TrialRemoval] = []
    for kind in _kinds(redundancy):
        only = _only(redundancy, kind)
        for share in shares:
            made = plan(only, {"macs": 1 - share * (1 - _least(only))})
            if not made.edits:
                continue
            small = (
                Recovery(batches[held:], method=method).follow(made, model, Stages(example, None, timed=False)).model
            )
            macs = made.expected["macs"] / max(made.original["macs"], 1)
            trials.append(
                TrialRemoval(
                    kind, macs, made.expected["damage"], relative_error(answer(small, batches[:held]).logits, wanted)
                )
            )
    return _scaled(redundancy, trials)


def _kinds(redundancy: Redundancy) -> list[str]:
    kinds = ["block"] if redundancy.blocks else []
    return kinds + sorted({entry.group.kind for entry in redundancy.channels})


def _only(redundancy: Redundancy, kind: str) -> Redundancy:
    blocks = redundancy.blocks if kind == "block" else ()
    return replace(redundancy, blocks=blocks, channels=tuple(e for e in redundancy.channels if e.group.kind == kind))


def _least(redundancy: Redundancy) -> float:
    """Share of the macs that is left when everything goes."""
    space = Space.of(redundancy, Constraints())
    levels = np.array([len(menu.counts) - 1 for menu in space.menus], np.intp)
    everything = Choice(levels, np.ones(len(space.blocks), bool))
    return space.exact(everything).macs / max(redundancy.costs.total().macs, 1)


def _scaled(redundancy: Redundancy, trials: Sequence[TrialRemoval]) -> Redundancy:
    factors: dict[str, float] = {}
    for kind in {trial.kind for trial in trials}:
        ratios = [
            log(trial.measured / trial.expected)
            for trial in trials
            if trial.kind == kind and min(trial.measured, trial.expected) > TINY
        ]
        if ratios:
            factors[kind] = exp(sum(ratios) / len(ratios))
    blocks = tuple(replace(entry, damage=entry.damage * factors.get("block", 1.0)) for entry in redundancy.blocks)
    channels = tuple(
        replace(entry, damage=tuple(each * factors.get(entry.group.kind, 1.0) for each in entry.damage))
        for entry in redundancy.channels
    )
    return replace(redundancy, blocks=blocks, channels=channels, trials=tuple(trials))
