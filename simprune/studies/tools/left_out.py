"""Rates after a repair, predicted from networks other than the one that is asked for, with 90 % intervals."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

SMALLEST = 1e-5  # damage, below which damages count as equal
LEVEL = 0.9
NEAR = 0.5  # share of the other networks' cases, the most similar ones, whose errors make an interval
Case = dict[str, Any]  # one plan of one network: what is known of it, and what became of it


def features(case: Case, target: str, wanted: Sequence[str]) -> list[float]:
    """The numbers by which a target of a case is predicted."""
    guess = case["guess"][target]
    values = {
        "expected": [loss_scale(guess, case["count"]), math.log(max(case["expected damage"], SMALLEST))],
        "trial": [case["trial ratio"]],
        "kept": [math.log(case["kept share"])],
        "random": [float(case["random"])],
    }
    return [1.0, *(value for name in wanted for value in values[name])]


def loss_scale(loss: float, count: int) -> float:
    """A loss between 0 and 1 on a scale on which errors are about alike; `loss_of` is the way back."""
    return math.log(max(loss, 0.0) + 1 / count)


def loss_of(scaled: float, count: int) -> float:
    """The loss between 0 and 1 that `loss_scale` maps to a value."""
    return min(max(math.exp(min(scaled, 1.0)) - 1 / count, 0.0), 1.0)


def predicted(
    cases: Sequence[Case], target: str, wanted: Sequence[str], left_out: str
) -> list[tuple[float, float, float]]:
    """For every case the predicted rate and its 90 % interval, from cases of other networks alone.

    Args:
        cases: all.
        target: "agreement" or "accuracy".
        wanted: names of the figures that may be used.
        left_out: "network" or "architecture": cases that share it with the one asked for are not used.
    """
    rows = np.array([features(case, target, wanted) for case in cases])
    best = [1.0 if target == "agreement" else case["original"] for case in cases]
    truth = np.array([loss_scale(top - case[target], case["count"]) for top, case in zip(best, cases, strict=True)])
    groups = np.array([case[left_out] for case in cases])
    networks = np.array([case["network"] for case in cases])
    made: list[tuple[float, float, float]] = [(math.nan,) * 3] * len(cases)  # pyright: ignore[reportAssignmentType]
    for group in dict.fromkeys(groups.tolist()):
        others = groups != group
        inner, errors = rows[others], []
        for network in dict.fromkeys(networks[others].tolist()):  # errors on networks that a fit has not seen
            fit = others & (networks != network)
            asked = others & (networks == network)
            if fit.any():
                errors += list(zip(rows[asked] @ _fit(rows[fit], truth[fit]), truth[asked], strict=True))
        if not errors:
            continue
        guessed, actual = np.array(errors).T
        weights = _fit(inner, truth[others])
        for number in map(int, np.flatnonzero(groups == group)):
            value = float(rows[number] @ weights)
            near = np.argsort(abs(guessed - value))[: max(round(NEAR * len(guessed)), 8)]
            low, middle, high = np.quantile((actual - guessed)[near], [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2])
            middle, most, least = (loss_of(value + shift, cases[number]["count"]) for shift in (middle, high, low))
            made[number] = (best[number] - middle, best[number] - most, best[number] - least)
    return made


def _fit(rows: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Weights of a linear model, pulled a little towards zero."""
    square = rows.T @ rows
    return np.linalg.solve(square + 1e-3 * len(rows) * np.eye(len(square)), rows.T @ truth)
