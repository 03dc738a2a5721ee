"""Grounding: tables, figures and sentences from what scores said of removals, and what these cost."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from simprune.studies.frame import Figure, Findings, Table
from simprune.studies.statistics import mean
from simprune.studies.tools.chosen import ratios_to_chance
from simprune.studies.tools.correlations import Case, correlation, pooled_over_networks
from simprune.studies.tools.known_groups import TESTS
from simprune.studies.tools.removals import DEPTH, WIDTH

STAGES = {"removed": "after removal", "repaired": "after repair", "finetuned": "after fine-tuning"}
FEW = 16  # rows of a figure
WEIGHED_WIDTH = ("second_order", "predictability", "taylor", "magnitude")
WEIGHED_DEPTH = ("similarity", "leave_one_out")
COLUMNS = ("score", *STAGES.values())
CHOSEN = ("score", "damage after removal / random", "damage after repair / random")
NOTE = (
    "Mean over networks of Spearman's rank correlation within a network, with 95 % intervals by bootstrap over "
    "networks; the highest after repair first. A score is read by its redundancy (more redundant: less damage), or by "
    "the damage that it expects."
)
NOTE_TOGETHER = "Both kinds of scores expect damage in one unit, so that a plan can weigh depth against width."
TITLE_TESTS = "Measures by networks that are known to differ"
NOTE_TESTS = (
    "Rates of passed tests; chance is 0.5, of layers 1/3. Without a value: the measure does not compare all of them."
)
NOTE_CHOICES = (
    "Half of a layer's channels goes; geometric means over layers and networks of damage as a share of that by random "
    "numbers, the smallest after repair first, with 95 % intervals by bootstrap over networks."
)
LIMITS = (
    "The networks are small and trained in seconds; whether the same order of scores holds for large networks is not "
    "shown here.",
    "One structure goes at a time. Plans remove many, whose damages do not add up.",
    "Within a network there are few blocks, so that the intervals of scores of blocks are wide.",
)
# Baselines: what is known without looking at representations. "trial" is the removal itself on the calibration inputs.
BASELINES = ("random numbers", "cost alone", "trial removal")


def findings_of(
    cases: Sequence[Case],
    choices: Sequence[Mapping[str, Any]],
    seed: int,
    tested: Mapping[str, Mapping[str, float | None]] | None = None,
) -> Findings:
    """Tables, figures and sentences from what every score said of every removal, and what it cost.

    Args:
        cases: removals, with `network`, `architecture`, `kind`, a damage by every stage, and `said` by score.
        choices: damages of what scores of channels chose, by `network`, `layer` and `score`.
        seed: of intervals.
        tested: how often every measure passes a test by known groups.
    """
    depth = _rows(cases, DEPTH, ("block_score: ", "measure: "), seed)
    width = _rows(cases, WIDTH, ("score: ",), seed)
    together = _rows(cases, (*DEPTH, *WIDTH), (), seed, _together(cases))
    tables = [
        Table("width", "Scores of channels and heads", COLUMNS, width, NOTE),
        Table(
            "depth", "Scores of blocks and halves, and similarity of input and output by measure", COLUMNS, depth, NOTE
        ),
        Table("together", "Depth and width in one order, by expected damage", COLUMNS, together, NOTE_TOGETHER),
        Table("kinds", "By kind of removal, after repair", *_by(cases, "kind", seed)),
        Table("architectures", "By architecture, after repair", *_by(cases, "architecture", seed)),
        Table(
            "pooled",
            "All networks pooled, after repair",
            ("score", "removals", "rank correlation"),
            pooled_over_networks(cases, seed),
        ),
        Table("choices", "What a score of channels chooses", CHOSEN, ratios_to_chance(choices, seed), NOTE_CHOICES),
        Table("tests", TITLE_TESTS, ("measure", *TESTS, "mean"), _tests(tested or {}), NOTE_TESTS),
        Table(
            "removals", "Removals", ("kind", "networks", "removals", "median damage", "after repair"), _counts(cases)
        ),
    ]
    kept = [table for table in tables if table.rows]
    figures = [
        Figure(name, "dots", _dots(rows), caption)
        for name, rows, caption in (
            ("width", width, "Scores of channels and heads: rank correlation with damage; bars are 95 % intervals."),
            ("depth", depth[:FEW] + [row for row in depth[FEW:] if row[0] in BASELINES],
             "The best scores and measures of blocks, and baselines: rank correlation with damage, 95 % intervals."),
        )
        if rows
    ]  # fmt: skip
    return Findings(_conclusions(width, depth, together, kept), kept, figures, _controls(width, depth), LIMITS)


def _rows(
    cases: Sequence[Case], kinds: Sequence[str], prefixes: Sequence[str], seed: int, scores: Sequence[str] | None = None
) -> list[list[Any]]:
    """One row a score: its rank correlation with damage by stage, the highest after repair first."""
    some = [case for case in cases if case["kind"] in kinds]
    if scores is None:
        said = dict.fromkeys(score for case in some for score in case["said"])
        scores = [score for score in said if score.startswith(tuple(prefixes))]
    rows = []
    for score in [*scores, *BASELINES]:
        entries = [correlation(some, score, stage, seed) for stage in STAGES]
        if any(not math.isnan(entry[0]) for entry in entries):
            rows.append([score.removeprefix("score: ").removeprefix("block_score: "), *map(list, entries)])
    return sorted(rows, key=lambda row: -(row[2][0] if not math.isnan(row[2][0]) else -2))


def _together(cases: Sequence[Case]) -> list[str]:
    """Adds what default scores expect of depth and width under one name, since they share a unit; returns the names."""
    made = []
    for width in WEIGHED_WIDTH:
        for depth in WEIGHED_DEPTH:
            name = f"{width} and {depth}"
            for case in cases:
                kind, score = ("score", width) if case["kind"] in WIDTH else ("block_score", depth)
                case["said"][name] = case["said"].get(f"{kind}: {score}, expected damage")
            made.append(name)
    return made


def _by(cases: Sequence[Case], fact: str, seed: int) -> tuple[tuple[str, ...], list[list[Any]], str]:
    """Columns and rows: rank correlation after repair for every kind or architecture."""
    groups = list(dict.fromkeys(case[fact] for case in cases))
    said = list(dict.fromkeys(score for case in cases for score in case["said"] if " and " not in score))
    rows = []
    for score in said:
        entries = [correlation([c for c in cases if c[fact] == group], score, "repaired", seed) for group in groups]
        if any(not math.isnan(entry[0]) for entry in entries):
            rows.append([score, *map(list, entries)])
    return ("score", *groups), rows, "Means over networks of rank correlations within a network."


def _tests(tested: Mapping[str, Mapping[str, float | None]]) -> list[list[Any]]:
    """How often every measure passes, the best on average first."""
    rows = []
    for measure in dict.fromkeys(name for values in tested.values() for name in values):
        passed = [tested[test].get(measure) for test in TESTS]
        if known := [value for value in passed if value is not None]:
            rows.append([measure, *passed, mean(known)])
    return sorted(rows, key=lambda row: -row[-1])


def _counts(cases: Sequence[Case]) -> list[list[Any]]:
    rows = []
    for kind in dict.fromkeys(case["kind"] for case in cases):
        some = [case for case in cases if case["kind"] == kind]
        damages = [float(np.median([case[stage] for case in some])) for stage in ("removed", "repaired")]
        rows.append([kind, len({case["network"] for case in some}), len(some), *damages])
    return rows


def _dots(rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    series = {title: [row[number] for row in rows] for number, title in enumerate(STAGES.values(), 1)}
    return {"rows": [row[0] for row in rows], "series": series, "label": "rank correlation with damage", "chance": 0.0}


def _best(rows: Sequence[Sequence[Any]], stage: int) -> Sequence[Any]:
    return max((row for row in rows if row[0] not in BASELINES), key=lambda row: row[stage][0])


def _said_of(row: Sequence[Any], stage: int) -> str:
    value, low, high = row[stage]
    return f"{row[0]} {value:.2f}" + ("" if math.isnan(low) else f" ({low:.2f} to {high:.2f})")


def _conclusions(
    width: Sequence[Sequence[Any]], depth: Sequence[Sequence[Any]], together: Sequence[Sequence[Any]], tables: Any
) -> list[str]:
    sentences = []
    for what, rows, default in (
        ("channels and heads", width, ("second_order, expected damage", "second_order")),
        ("blocks and halves", depth, ("similarity, expected damage", "similarity")),
        ("depth and width in one order", together, ("second_order and similarity",)),
    ):
        if not any(row[0] not in BASELINES for row in rows):
            continue
        known = {row[0]: row for row in rows}
        best = _best(rows, 2)
        stated = [_said_of(known[name], 2) for name in default if name in known]
        others = [_said_of(known[name], 2) for name in BASELINES if name in known]
        sentences.append(
            f"{what.capitalize()}, after repair: the highest rank correlation with damage has {_said_of(best, 2)}"
            + (f"; the default: {', '.join(stated)}" if stated else "")
            + f"; baselines: {', '.join(others)}."
        )
    chosen = next((table for table in tables if table.name == "choices"), None)
    if chosen is not None:
        known = {row[0]: row for row in chosen.rows}
        for score in dict.fromkeys((chosen.rows[0][0], "second_order")):
            if score in known:
                value, low, high = known[score][2]
                bounds = "" if math.isnan(low) else f" ({low:.2f} to {high:.2f})"
                sentences.append(
                    f"What {score} chooses costs, after repair, {value:.2f}{bounds} times what chance chooses."
                )
    for table in tables:
        if table.name == "tests":
            known = {row[0]: row[-1] for row in table.rows}
            shown = dict.fromkeys((table.rows[0][0], *(name for name in ("cka", "gbs") if name in known)))
            sentences.append(
                "Networks that are known to differ: mean rate of passed tests: "
                + ", ".join(f"{name} {known[name]:.2f}" for name in shown)
                + f" (of {len(known)} measures, median {float(np.median([*known.values()])):.2f})."
            )
    return sentences


def _controls(width: Sequence[Sequence[Any]], depth: Sequence[Sequence[Any]]) -> list[str]:
    sentences = []
    for what, rows in (("channels and heads", width), ("blocks and halves", depth)):
        for row in rows:
            if row[0] in BASELINES:
                after = f"{_said_of(row, 1)} after removal, {_said_of(row, 2)} after repair"
                sentences.append(f"{what.capitalize()}: {after}.")
    return sentences
