"""Trial removals: part of the structures is removed and the network repaired, to see what a removal really damages.

A score compares structures of one kind; a trial measures the damage, the squared change of the output as a share of its
variance, on inputs that neither the score nor the repair has seen. Early layers are repaired by more layers behind them
than late layers. Therefore every kind is tried early, in the middle and late in the network, and the damage of a
structure is scaled by the trials nearest to it in depth. Damages of blocks, channels and heads then have the same unit.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import log

import numpy as np

from simprune.core.plan import Method
from simprune.core.redundancy import Redundancy, TrialRemoval
from simprune.planners.constraints import Constraints
from simprune.planners.search import everything
from simprune.planners.space import Space
from simprune.trace.network import Network
from simprune.tune.holdout_trial import HoldoutTrial
from simprune.tune.plan import plan

TINY = 1e-12  # damages below this are rounding, and have no meaningful ratio
PARTS = 3  # the structures of a kind are split into so many parts by depth, each tried by itself


def calibrate(
    redundancy: Redundancy,
    network: Network,
    calibration: Iterable,
    shares: Sequence[float] = (0.2,),
    method: Method = "least_squares",
) -> Redundancy:
    """The same redundancy with damages scaled to what trial removals measured, and with the trials.

    Damages are multiplied by measured over expected damage: the geometric mean over shares, interpolated over the order
    of execution. A trial costs one edit and one repair; there is one per kind, part of the depth and share.

    Args:
        redundancy: of the original's structures.
        network: the original.
        calibration: batches, of which some are held out (see `simprune.tune.holdout_trial`).
        shares: a trial removes this share, in (0, 1), of all macs that its structures could save; without any, nothing
            is tried.
        method: repairs the trials.

    Raises:
        ValueError: for fewer than two batches.
    """
    if not shares:
        return replace(redundancy, trials=())
    holdout = HoldoutTrial.of(network, calibration, method)
    trials: list[TrialRemoval] = []
    factors: dict[tuple[str, str], float] = {}
    for kind, names in _kinds(redundancy).items():
        depths, logs = [], []
        for part in filter(len, np.array_split(np.arange(len(names)), PARTS)):
            removals = [_trial(redundancy, kind, [names[index] for index in part], share, holdout) for share in shares]
            tried = [trial for trial in removals if trial is not None]
            trials += tried
            ratios = [
                log(trial.measured / trial.expected) for trial in tried if min(trial.measured, trial.expected) > TINY
            ]
            if ratios:
                depths.append(float(part.mean()))
                logs.append(sum(ratios) / len(ratios))
        if depths:
            scale = np.exp(np.interp(np.arange(len(names)), depths, logs))
            factors |= {(kind, name): float(factor) for name, factor in zip(names, scale, strict=True)}
    return _scaled(redundancy, factors, trials)


def _trial(
    redundancy: Redundancy, kind: str, names: Sequence[str], share: float, holdout: HoldoutTrial
) -> TrialRemoval | None:
    """Remove a share of what these structures could save at most; None where the plan removes nothing."""
    part = _only(redundancy, kind, names)
    removal = plan(part, {"macs": 1 - share * (1 - _least(part))})
    if not removal.edits:
        return None
    macs = removal.expected["macs"] / max(removal.original["macs"], 1)
    return TrialRemoval(kind, names[0], names[-1], macs, removal.expected["damage"], holdout.error(removal))


def _kinds(redundancy: Redundancy) -> dict[str, list[str]]:
    """Names of the structures of every kind, in order of execution."""
    names_by_kind: dict[str, list[str]] = {"block": [entry.name for entry in redundancy.blocks]}
    for entry in redundancy.channels:
        names_by_kind.setdefault(entry.group.kind, []).append(entry.name)
    return {kind: names for kind, names in names_by_kind.items() if names}


def _only(redundancy: Redundancy, kind: str, names: Sequence[str]) -> Redundancy:
    """The redundancy of these structures of one kind alone."""
    return replace(
        redundancy,
        blocks=tuple(entry for entry in redundancy.blocks if kind == "block" and entry.name in names),
        channels=tuple(entry for entry in redundancy.channels if entry.group.kind == kind and entry.name in names),
    )


def _least(redundancy: Redundancy) -> float:
    """The share of the original's macs that a network without all these structures has."""
    space = Space.of(redundancy, Constraints())
    return space.exact(everything(space)).macs / max(redundancy.costs.total().macs, 1)


def _scaled(
    redundancy: Redundancy, factors: Mapping[tuple[str, str], float], trials: Sequence[TrialRemoval]
) -> Redundancy:
    """The same redundancy with damages times `factors`, by kind and name; where there is none, unchanged."""
    blocks = tuple(
        replace(entry, damage=entry.damage * factors.get(("block", entry.name), 1.0)) for entry in redundancy.blocks
    )
    channels = []
    for entry in redundancy.channels:
        factor = factors.get((entry.group.kind, entry.name), 1.0)
        channels.append(replace(entry, damage=tuple(damage * factor for damage in entry.damage)))
    return replace(redundancy, blocks=blocks, channels=tuple(channels), trials=tuple(trials))
