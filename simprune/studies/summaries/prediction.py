"""Prediction: tables, figures and sentences on how well rates were predicted."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from simprune.studies.findings import Figure, Findings, Table
from simprune.studies.statistics import mean
from simprune.studies.tools.left_out import Case, predicted

WANTED = (0.85, 0.95, 0.01, 0.1)  # coverage from and to, median error, share of the cost
# What a prediction may use, by name. The last one is what is proposed.
PREDICTORS = {
    "cost alone": ("kept",),
    "expected damage": ("expected", "kept", "random"),
    "expected damage and a trial": ("expected", "trial", "kept", "random"),
}


def findings_of(cases: Sequence[Case]) -> Findings:
    """Tables, figures and sentences from cases: coverage and errors by what a prediction uses."""
    rows, kinds = [], []
    for target in ("agreement", "accuracy"):
        for name, wanted in PREDICTORS.items():
            for left_out in ("network", "architecture"):
                made = predicted(cases, target, wanted, left_out)
                scored = [(case, one) for case, one in zip(cases, made, strict=True) if not math.isnan(one[0])]
                if scored:
                    rows.append([target, name, f"another {left_out}", *_quality(scored, target)])
                if name == [*PREDICTORS][-1] and left_out == "network":
                    kinds += [
                        [target, fact, *_quality(part, target)]
                        for key in ("architecture", "curve")
                        for fact in dict.fromkeys(case[key] for case in cases)
                        if (part := [(case, one) for case, one in scored if case[key] == fact])
                    ]
    spent, tried = sum(case["seconds"] for case in cases), {case["network"]: case["trial seconds"] for case in cases}
    share = sum(tried.values()) / max(spent, 1e-9)
    single = mean([case["trial seconds"] / max(case["seconds"], 1e-9) for case in cases])
    columns = ("rate", "uses", "asked of", "cases", "median error (points)", "coverage", "mean width (points)")
    tables = [
        Table("quality", "Predictions", columns, rows, NOTE),
        Table("parts", "By architecture and kind of plan", ("rate", "part", *columns[3:]), kinds, NOTE),
        Table("cost", "Cost", ("what", "share of doing it"), [
            ["the trial, beside all plans of a network", share], ["the trial, beside a single plan", single],
        ]),
    ]  # fmt: skip
    figures = [_figure(cases, target) for target in ("agreement", "accuracy")]
    return Findings(_conclusions(rows, share, single), tables, figures, _controls(rows), LIMITS)


NOTE = (
    "Median error: of the middle of the interval, in percentage points. Coverage: share of cases whose rate, measured "
    "on the test images, lies in the 90 % interval. The expected damage costs nothing beside the plan."
)
LIMITS = (
    "A new network has to resemble the ones that the errors come from: small image classifiers. For other kinds of "
    "networks the study has to be run on them.",
    "Test images are finite: a rate on 800 images has a standard error of up to 1.8 points, a part of the errors.",
)


def _quality(scored: Sequence[tuple[Case, tuple[float, float, float]]], target: str) -> list[Any]:
    errors = [abs(one[0] - case[target]) for case, one in scored]
    inside = [one[1] - 1e-9 <= case[target] <= one[2] + 1e-9 for case, one in scored]
    widths = [one[2] - one[1] for _, one in scored]
    return [len(scored), 100 * float(np.median(errors)), mean([float(each) for each in inside]), 100 * mean(widths)]


def _conclusions(rows: Sequence[Sequence[Any]], share: float, single: float) -> list[str]:
    low, high, error, cost = WANTED
    sentences = []
    for row in rows:
        if row[1] == [*PREDICTORS][-1]:
            holds = [low <= row[5] <= high, row[4] <= 100 * error, share <= cost]
            sentences.append(
                f"{row[0].capitalize()} of {row[2]}: the 90 % interval holds {row[5]:.0%} of {row[3]} cases (wanted: "
                f"{low:.0%} to {high:.0%}), the median error is {row[4]:.2f} points (wanted: at most {100 * error:g}), "
                f"the mean width {row[6]:.1f} points; {'this holds' if all(holds[:2]) else 'this does not hold'}."
            )
    sentences.append(
        f"The trial costs {share:.0%} of doing all plans of a network, and {single:.0%} of doing a single one "
        f"(wanted: at most {cost:.0%})."
    )
    return sentences


def _controls(rows: Sequence[Sequence[Any]]) -> list[str]:
    return [
        f"{row[0].capitalize()} of {row[2]} by {row[1]}: median error {row[4]:.2f} points, coverage {row[5]:.0%}, mean "
        f"width {row[6]:.1f} points."
        for row in rows
        if row[1] != [*PREDICTORS][-1] and row[2] == "another network"
    ]


def _figure(cases: Sequence[Case], target: str) -> Figure:
    made = predicted(cases, target, [*PREDICTORS.values()][-1], "network")
    series: dict[str, dict[str, list[float | None]]] = {}
    for case, one in zip(cases, made, strict=True):
        points = series.setdefault(case["architecture"], {"x": [], "y": []})
        points["x"].append(None if math.isnan(one[0]) else 100 * one[0])
        points["y"].append(100 * case[target])
    data = {"x": f"predicted {target} (%)", "y": f"{target} after the repair (%)", "series": series, "diagonal": True}
    return Figure(target, "scatter", data, f"Predicted and measured {target}, every network left out in turn.")
