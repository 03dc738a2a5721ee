"""What it costs to remove the half of a layer's channels that a score chooses, beside what chance chooses."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import simprune as sp
from simprune.core.registry import parts
from simprune.studies.statistics import bootstrap, mean
from simprune.studies.tools.correlations import UNKNOWN
from simprune.studies.tools.removals import Bench, Removal, names


def costs_of_choices(bench: Bench, inputs: int, scores: Sequence[str], most: int) -> list[dict[str, Any]]:
    """What it costs to remove the half of a layer's channels that a score chooses."""
    if not most:
        return []
    run, subject = bench.run, bench.subject
    rng = np.random.default_rng(run.seed_of(subject.key, "choices"))
    layers = [entry.name for entry in bench.redundancy.channels if entry.group.kind == "channels"]
    layers = [layers[number] for number in sorted(rng.permutation(len(layers))[:most])]
    rows = []
    for name in dict.fromkeys([*names(scores, [*parts("score")]), "random"]):
        key = ["choice", subject.key, inputs, name, layers]
        costs = run.step(key, lambda name=name: _chosen(bench, name, layers))
        rows += [{"network": subject.name, "score": name, "layer": layer, **cost} for layer, cost in costs.items()]
    return rows


def _chosen(bench: Bench, score: str, layers: Sequence[str]) -> dict[str, Any]:
    found = sp.analyze(
        bench.subject.model, bench.calibration, structures=("channels",), score=score, seed=bench.run.seed
    )
    costs = {}
    for entry in found.channels:
        if entry.name in layers:
            units = tuple(sorted(entry.order[: entry.group.size // 2]))
            edit = sp.Edit(entry.group.kind, entry.name, entry.group.expand(units), entry.group.width)
            cost = bench.outcome(Removal("channels", entry.name, units, edit, entry.share / 2))
            costs[entry.name] = {"removed": cost["removed"], "repaired": cost["repaired"]}
    return costs


def ratios_to_chance(choices: Sequence[Mapping[str, Any]], seed: int) -> list[list[Any]]:
    """Damage by what a score chooses, as a share of that by random numbers: geometric means over layers."""
    costs = {(row["network"], row["layer"], row["score"]): row for row in choices}
    rows = []
    for score in dict.fromkeys(row["score"] for row in choices):
        entry: list[Any] = [score]
        for stage in ("removed", "repaired"):
            logs: dict[str, list[float]] = {}
            for (network, layer, name), row in costs.items():
                other = costs[network, layer, "random"][stage]
                if name == score and row[stage] > 0 and other > 0:
                    logs.setdefault(network, []).append(math.log(row[stage] / other))
            drawn = bootstrap([mean(values) for values in logs.values()], mean, seed) if logs else UNKNOWN
            entry.append([math.exp(value) for value in drawn])
        rows.append(entry)
    return sorted(rows, key=lambda row: row[2][0])
