"""What every score and measure says of removals, from calibration inputs alone."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

import simprune as sp
from simprune.core.registry import parts
from simprune.studies.frame import Run, Subject
from simprune.studies.tools.removals import DEPTH, WIDTH, Removal, names

# Options of block scores and measures that have no default.
NEEDED: dict[str, dict[str, Any]] = {
    "trend": {"statistic": "magnitude"}, "cka_minibatch": {"batch_size": 64}, "cka_sparse": {"top": 16},
    "maximum_match": {"epsilon": 0.5}, "partial_whitening_shape_metric": {"alpha": 0.5},
    "riemannian_distance": {"reg": 0.1},
}  # fmt: skip
LEFT_OUT = ("contrasim", "geometry_score", "rtd")  # the first has to be trained; the others take 20 s a network


def said_of(
    run: Run, subject: Subject, calibration: Any, inputs: int, drawn: Sequence[Removal],
    scores: Sequence[str], block_scores: Sequence[str], measures: Sequence[str],
) -> dict[str, list[float | None]]:  # fmt: skip
    """What every score says of every removal: the larger, the more damage it expects; None where it says nothing."""
    said: dict[str, list[float | None]] = {}
    asked = {
        "score": names(scores, [*parts("score")]),
        "block_score": names(block_scores, [*parts("block_score")]),
        "measure": names(measures, measures_of_rows()),
    }
    for kind, name in [(kind, name) for kind, listed in asked.items() for name in listed]:
        key = ["said", subject.key, inputs, kind, name, [removal.key for removal in drawn]]
        values = run.step(key, lambda k=kind, n=name: _ask(run, subject, calibration, drawn, k, n))
        said |= {f"{kind}: {name}{how}": numbers for how, numbers in values.items()}
    rng = np.random.default_rng(run.seed_of(subject.key, "random"))
    said["random numbers"] = [float(value) for value in rng.random(len(drawn))]
    return said


def measures_of_rows() -> list[str]:
    """Measures that compare what runs through blocks, and take no more than the rows of both sides."""
    fit = [
        name for name, part in parts("measure").items() if not getattr(part.make, "extras", ()) and name not in LEFT_OUT
    ]
    return [
        name for name in fit if name in NEEDED or dataclasses.MISSING not in parts("measure")[name].options.values()
    ]


def _ask(
    run: Run, subject: Subject, calibration: Any, drawn: Sequence[Removal], kind: str, name: str
) -> dict[str, list[float | None]]:
    """The values of one score, by redundancy and by the damage that it expects; of a measure by redundancy."""
    kinds = WIDTH if kind == "score" else DEPTH
    if not any(removal.kind in kinds for removal in drawn):
        return {}
    structures = ("channels", "heads") if kind == "score" else ("blocks", "sub_blocks")
    choice: Any = {kind: {"name": name, **NEEDED.get(name, {})}}
    found = sp.analyze(subject.model, calibration, structures=structures, seed=run.seed, **choice)
    blocks = {entry.name: entry for entry in found.blocks}
    groups = {(entry.group.kind, entry.name): entry for entry in found.channels}
    redundant: list[float | None] = []
    expected: list[float | None] = []
    for removal in drawn:
        block = blocks.get(removal.name) if removal.kind in DEPTH else None
        group = groups.get((removal.edit.remove, removal.name))
        if removal.kind not in kinds or (block is None and group is None):
            redundant.append(None)
            expected.append(None)
        elif block is not None:
            redundant.append(1 - block.redundancy)
            expected.append(block.damage)
        elif group is not None:
            redundant.append(sum(1 - group.redundancy[unit] for unit in removal.units))
            expected.append(sum(group.damage[unit] for unit in removal.units))
    return {"": redundant} if kind == "measure" else {"": redundant, ", expected damage": expected}
