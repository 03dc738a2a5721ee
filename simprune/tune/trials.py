"""Trial removals: what plans for part of the structures cost the output, once repaired, on inputs that nothing saw.

A score says how structures of a kind compare; a trial says what that comes to. Early layers are repaired by more
layers behind them than late ones, so every kind is tried early, in the middle and late, and the damage of each
structure is scaled by what its neighbours in depth came to. Then blocks, channels and heads are weighed in what they
really cost: the squared change of the output as a share of its variance.
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

TINY = 1e-12  # damage below which there is nothing to compare
PARTS = 3  # of the depth that are tried apart


def calibrate(
    redundancy: Redundancy,
    network: Network,
    calibration: Iterable,
    shares: Sequence[float] = (0.2,),
    method: Method = "least_squares",
) -> Redundancy:
    """The same redundancy with damages as they were measured, and the trials behind that.

    `shares`: which part of all macs that structures of a kind could save in a third of the depth a trial removes, each
    in (0, 1). Trials are repaired by `method` (see `simprune.tune.holdout_trial`). Damages are multiplied by measured over
    expected: the geometric mean over shares, interpolated over the order of execution. Cost: per kind, third and share
    one edit and one repair. Raises ValueError for a share outside (0, 1) and for fewer than two batches.
    """
    if not shares:
        return replace(redundancy, trials=())
    holdout = HoldoutTrial.of(network, calibration, method)
    trials: list[TrialRemoval] = []
    factors: dict[tuple[str, str], float] = {}
    for kind, names in _kinds(redundancy).items():
        places, logs = [], []
        for part in filter(len, np.array_split(np.arange(len(names)), PARTS)):
            made = [_trial(redundancy, kind, [names[place] for place in part], share, holdout) for share in shares]
            tried = [trial for trial in made if trial is not None]
            trials += tried
            ratios = [log(each.measured / each.expected) for each in tried if min(each.measured, each.expected) > TINY]
            if ratios:
                places.append(float(part.mean()))
                logs.append(sum(ratios) / len(ratios))
        if places:
            found = np.exp(np.interp(np.arange(len(names)), places, logs))
            factors |= {(kind, name): float(factor) for name, factor in zip(names, found, strict=True)}
    return _scaled(redundancy, factors, trials)


def _trial(
    redundancy: Redundancy, kind: str, names: Sequence[str], share: float, holdout: HoldoutTrial
) -> TrialRemoval | None:
    """None where nothing can go."""
    only = _only(redundancy, kind, names)
    made = plan(only, {"macs": 1 - share * (1 - _least(only))})
    if not made.edits:
        return None
    macs = made.expected["macs"] / max(made.original["macs"], 1)
    return TrialRemoval(kind, names[0], names[-1], macs, made.expected["damage"], holdout.error(made))


def _kinds(redundancy: Redundancy) -> dict[str, list[str]]:
    """Names of the structures of every kind, in order of execution."""
    found: dict[str, list[str]] = {"block": [entry.name for entry in redundancy.blocks]}
    for entry in redundancy.channels:
        found.setdefault(entry.group.kind, []).append(entry.name)
    return {kind: names for kind, names in found.items() if names}


def _only(redundancy: Redundancy, kind: str, names: Sequence[str]) -> Redundancy:
    return replace(
        redundancy,
        blocks=tuple(entry for entry in redundancy.blocks if kind == "block" and entry.name in names),
        channels=tuple(entry for entry in redundancy.channels if entry.group.kind == kind and entry.name in names),
    )


def _least(redundancy: Redundancy) -> float:
    """Share of the macs that is left when everything goes."""
    space = Space.of(redundancy, Constraints())
    return space.exact(everything(space)).macs / max(redundancy.costs.total().macs, 1)


def _scaled(
    redundancy: Redundancy, factors: Mapping[tuple[str, str], float], trials: Sequence[TrialRemoval]
) -> Redundancy:
    blocks = tuple(
        replace(entry, damage=entry.damage * factors.get(("block", entry.name), 1.0)) for entry in redundancy.blocks
    )
    channels = []
    for entry in redundancy.channels:
        factor = factors.get((entry.group.kind, entry.name), 1.0)
        channels.append(replace(entry, damage=tuple(each * factor for each in entry.damage)))
    return replace(redundancy, blocks=blocks, channels=tuple(channels), trials=tuple(trials))
