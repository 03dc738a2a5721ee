"""Rank correlations of what scores say of removals with the damage that removals do."""

import math
from collections.abc import Sequence
from typing import Any

from simprune.studies.statistics import bootstrap, mean, spearman

UNKNOWN = (math.nan, math.nan, math.nan)
Case = dict[str, Any]  # one removal: network, architecture, kind, damages by stage, and what every score says of it


def correlation(cases: Sequence[Case], score: str, stage: str, seed: int = 0) -> tuple[float, float, float]:
    """Mean over networks of the rank correlation of a score with a damage, and its interval."""
    values = [value for value in by_network(cases, score, stage).values() if not math.isnan(value)]
    return bootstrap(values, mean, seed) if values else UNKNOWN


def by_network(cases: Sequence[Case], score: str, stage: str) -> dict[str, float]:
    """The rank correlation of a score with a damage within every network."""
    return {
        network: spearman(*zip(*pairs, strict=True)) if pairs else math.nan
        for network, pairs in pairs_of(cases, score, stage).items()
    }


def pairs_of(cases: Sequence[Case], score: str, stage: str) -> dict[str, list[tuple[float, float]]]:
    """(score, damage) of the removals of every network for which both are known."""
    pairs: dict[str, list[tuple[float, float]]] = {case["network"]: [] for case in cases}
    for case in cases:
        if case["said"].get(score) is not None and case[stage] is not None:
            pairs[case["network"]].append((case["said"][score], case[stage]))
    return pairs


def pooled_over_networks(cases: Sequence[Case], seed: int) -> list[list[Any]]:
    """Rank correlation over the removals of all networks at once; networks are drawn for the interval."""
    rows = []
    for score in dict.fromkeys(score for case in cases for score in case["said"]):
        groups = [pairs for pairs in pairs_of(cases, score, "repaired").values() if pairs]

        def pooled(drawn: list[list[tuple[float, float]]]) -> float:
            return spearman(*zip(*(pair for pairs in drawn for pair in pairs), strict=True))

        if groups:
            rows.append([score, sum(map(len, groups)), list(bootstrap(groups, pooled, seed, draws=200))])
    return sorted(rows, key=lambda row: -(row[2][0] if not math.isnan(row[2][0]) else -2))
