"""Trial removals: part of the structures is removed and the network repaired, to measure the damage of a removal.

A score compares structures of one kind; a trial measures the damage, the squared change of the output as a share of its
variance, on inputs that neither the score nor the repair has seen. Early layers are repaired by more layers behind them
than late layers. Therefore every kind is tried early, in the middle and late in the network, and the damage of a
structure is scaled by the trials nearest to it in depth. Damages of blocks, channels and heads then have the same unit.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import log

import numpy as np

from simprune.core.plan import Method
from simprune.core.progress import progress
from simprune.core.redundancy import Redundancy, TrialRemoval
from simprune.core.ties import OUTPUT
from simprune.planners.constraints import Constraints
from simprune.planners.search import everything
from simprune.planners.space import Space
from simprune.trace.network import Network
from simprune.tune.finalists import HoldoutTrial
from simprune.tune.plan import plan

DIGITS = 2  # of the logarithm of a ratio: trials say no more, and what rounding changes in them changes no plan
PARTS = 3  # the structures of a kind are split into this many parts by depth, and every part is tried by itself


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
        calibration: batches, of whose inputs some are held out (see `simprune.tune.finalists.HoldoutTrial`).
        shares: a trial removes this share, in (0, 1), of all macs that its structures could save; without any, nothing
            is tried.
        method: repairs the trials.

    Returns:
        The redundancy; the damages of a kind without a usable trial are unchanged.

    Raises:
        ValueError: for fewer than two inputs.
    """
    if not shares:
        return replace(redundancy, trials=())
    holdout = HoldoutTrial.of(network, calibration, method)
    trials: list[TrialRemoval] = []
    factors: dict[tuple[str, str], float] = {}
    names_by_kind = {"block": [entry.name for entry in redundancy.blocks]}
    for entry in redundancy.channels:
        names_by_kind.setdefault(entry.group.kind, []).append(entry.name)
    for kind, names in progress(list(names_by_kind.items()), "trial removals"):
        depths, logs = [], []
        for part in filter(len, np.array_split(np.arange(len(names)), PARTS)):
            tried = _trials(redundancy, kind, [names[index] for index in part], shares, holdout)
            trials += tried
            ratios = [
                log(trial.measured / trial.expected) for trial in tried if min(trial.measured, trial.expected) > OUTPUT
            ]
            if ratios:
                depths.append(float(part.mean()))
                logs.append(round(sum(ratios) / len(ratios), DIGITS))
        if depths:
            scale = np.exp(np.interp(np.arange(len(names)), depths, logs))
            factors |= {(kind, name): float(factor) for name, factor in zip(names, scale, strict=True)}
    blocks = []
    for entry in redundancy.blocks:
        blocks.append(replace(entry, damage=entry.damage * factors.get(("block", entry.name), 1.0)))
    channels = []
    for entry in redundancy.channels:
        factor = factors.get((entry.group.kind, entry.name), 1.0)
        channels.append(replace(entry, damage=tuple(damage * factor for damage in entry.damage)))
    return replace(redundancy, blocks=tuple(blocks), channels=tuple(channels), trials=tuple(trials))


def _trials(
    redundancy: Redundancy, kind: str, names: Sequence[str], shares: Sequence[float], holdout: HoldoutTrial
) -> list[TrialRemoval]:
    """One trial per share of the macs that these structures of a kind could save; none where a plan removes nothing."""
    blocks = [entry for entry in redundancy.blocks if kind == "block" and entry.name in names]
    channels = [entry for entry in redundancy.channels if entry.group.kind == kind and entry.name in names]
    part = replace(redundancy, blocks=tuple(blocks), channels=tuple(channels))
    space, whole, trials = Space.of(part, Constraints()), max(part.costs.total().macs, 1), []
    least = space.exact(everything(space)).macs / whole
    for share in shares:
        removal = plan(part, {"macs": 1 - share * (1 - least)})
        if removal.edits:
            macs, measured = removal.expected["macs"] / whole, float(holdout.errors(removal).mean())
            trials.append(TrialRemoval(kind, names[0], names[-1], macs, removal.expected["damage"], measured))
    return trials
