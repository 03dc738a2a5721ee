"""Prediction: before a network is repaired, say what accuracy and agreement it will have."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import simprune as sp
from simprune.core.registry import register
from simprune.studies._removals import Bench, calibration_of
from simprune.studies.frame import Figure, Findings, Run, Table
from simprune.studies.networks import accuracy, agreement, answers, damage
from simprune.studies.statistics import mean

CURVES = {  # what may go, and what chooses
    "width": (("channels", "heads"), "greedy"),
    "depth and width": (("channels", "heads", "blocks"), "greedy"),
    "random width": (("channels", "heads"), "random"),
}
TRIAL = 0.6  # share of the multiply-adds that the plan of the trial keeps
NOISES = 8  # draws of noise by which changed answers are simulated
GRID = np.geomspace(1e-5, 10, 61)  # damages at which they are simulated
LEVEL = 0.9
NEAR = 0.5  # share of the other networks' cases, the most similar ones, whose errors make an interval
WANTED = (0.85, 0.95, 0.01, 0.1)  # coverage from and to, median error, share of the cost
# What a prediction may use, by name. The last one is what is proposed.
PREDICTORS = {
    "cost alone": ("kept",),
    "expected damage": ("expected", "kept", "random"),
    "expected damage and a trial": ("expected", "trial", "kept", "random"),
}
Case = dict[str, Any]


@register(
    "study",
    "prediction",
    source="our own; intervals by leave-one-out residuals after Barber et al. (arXiv:1905.02928)",
    quick={"architectures": ("residual", "vgg"), "seeds": 2, "shares": (0.8, 0.5)},
)
def prediction(
    run: Run,
    *,
    architectures: Sequence[str] = ("residual", "vgg", "vit", "mobilenet", "convnext"),
    seeds: int = 3,
    shares: Sequence[float] = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4),
    inputs: int = 256,
) -> Findings:
    """Can accuracy and agreement after the repair be predicted before it?

    Protocol: for every network, plans for several shares of the multiply-adds remove channels and heads, or blocks too,
    or what chance names; all are applied and repaired in closed form, and the smaller network is compared with the
    original on test images. What is known before: the plan's expected damage, the share that it keeps, whether it is a
    random plan, and how far damage differed from what was expected in one trial per network: a plan that keeps 0.6 of
    the multiply-adds, repaired on half of the calibration images and measured on the others. Expected damage becomes
    expected agreement by a simulation without the smaller network: noise of that damage is added to the original's
    answers on calibration images, and changed answers are counted. A linear model with these figures is fitted to all
    other networks; its errors on the most similar half of their cases give a 90 % interval. It is asked of every
    network in turn, and of every architecture in turn, which is harder.

    Cost: about 10 minutes of one core for 200 plans of 15 small networks; the quick version takes one.

    Args:
        architectures: of the networks that are trained; without meaning for networks of your own.
        seeds: networks of every architecture.
        shares: of the multiply-adds that plans keep.
        inputs: calibration images.
    """
    cases: list[Case] = []
    calibration = calibration_of(run.images, inputs, run.seed_of("calibration"))
    for subject in run.progress(run.subjects(architectures, seeds), "predict"):
        bench = Bench(run, subject, calibration)
        labels = torch.cat([batch[1] for batch in calibration])
        simulated = _simulated(bench.on_calibration, labels, run.generator(subject.key, "noise"))
        trial = run.step(["trial", subject.key, inputs, TRIAL], lambda bench=bench: _trial(bench))
        facts = {"network": subject.name, "architecture": subject.architecture, "count": len(run.images.test)}
        for curve, (structures, planner) in CURVES.items():
            if not any(entry.group.kind in structures for entry in bench.redundancy.channels):
                continue
            if "blocks" in structures and not bench.redundancy.blocks:
                continue
            for share in shares:
                key = ["plan", subject.key, inputs, curve, share]
                done = run.step(key, lambda b=bench, s=structures, p=planner, q=share: _done(b, s, p, q))
                if done is not None:
                    cases.append(
                        facts | done | {"curve": curve, "random": planner == "random"} | _known(done, trial, simulated)
                    )
    return findings_of(cases)


def _trial(bench: Bench) -> dict[str, float]:
    """How far damage differs from what was expected: one plan, repaired on half of the calibration images, measured on
    the others."""
    redundancy = sp.analyze(bench.subject.model, bench.calibration, structures=("channels", "heads"))
    plan = sp.plan(redundancy, {"macs": TRIAL})
    start = time.process_time()
    half = len(bench.pixels) // 2
    small = sp.apply(plan, bench.subject.model)
    sp.reconstruct(small, plan, bench.subject.model, [bench.pixels[:half]])
    measured = damage(answers(small, bench.pixels[half:]), bench.on_calibration[half:])
    ratio = math.log(max(measured, GRID[0])) - math.log(max(plan.expected["damage"], GRID[0]))
    return {"ratio": ratio, "seconds": time.process_time() - start}


def _done(bench: Bench, structures: Sequence[str], planner: str, share: float) -> dict[str, float] | None:
    """What a plan expects, and what comes of it; None where it cannot be reached."""
    run, model = bench.run, bench.subject.model
    start = time.process_time()
    redundancy = sp.analyze(model, bench.calibration, structures=structures, seed=run.seed)
    try:
        plan = sp.plan(redundancy, {"macs": share}, planner, run.seed)
    except ValueError as error:
        if "macs" not in str(error):
            raise
        return None
    small = sp.apply(plan, model)
    sp.reconstruct(small, plan, model, bench.calibration)
    logits = answers(small, run.images.test)
    spent = time.process_time() - start
    kept = plan.expected["macs"] / plan.original["macs"]
    original = accuracy(bench.on_test, run.images.test_labels)
    return {
        "expected damage": plan.expected["damage"],
        "kept share": kept,
        "damage": damage(logits, bench.on_test),
        "agreement": agreement(logits, bench.on_test),
        "accuracy": accuracy(logits, run.images.test_labels),
        "original": original,
        "seconds": spent,
    }


def _simulated(logits: Tensor, labels: Tensor, generator: torch.Generator) -> dict[str, np.ndarray]:
    """Agreement and lost accuracy when noise of a damage is added to answers, for every damage of the grid."""
    spread = (logits - logits.mean(0)).square().mean().sqrt()
    noise = torch.randn((NOISES, *logits.shape), generator=generator) * spread
    before = accuracy(logits, labels)
    changed, lost = [], []
    for size in GRID:
        noisy = logits + math.sqrt(size) * noise
        changed.append(float((noisy.argmax(-1) != logits.argmax(-1)).float().mean()))
        lost.append(before - float((noisy.argmax(-1) == labels).float().mean()))
    return {"agreement": np.maximum.accumulate(changed), "accuracy": np.array(lost)}


def _known(
    done: Mapping[str, float], trial: Mapping[str, float], simulated: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """What is known before the repair: for both targets a first guess, from expected damage with and without trial."""
    at = np.log(GRID)
    expected = math.log(min(max(done["expected damage"], GRID[0]), GRID[-1]))
    return {
        "guess": {key: float(np.interp(expected, at, curve)) for key, curve in simulated.items()},
        "trial ratio": trial["ratio"],
        "trial seconds": trial["seconds"],
    }


def features(case: Case, target: str, wanted: Sequence[str]) -> list[float]:
    """The numbers by which a target of a case is predicted."""
    guess = case["guess"][target]
    values = {
        "expected": [loss_scale(guess, case["count"]), math.log(max(case["expected damage"], GRID[0]))],
        "trial": [case["trial ratio"]],
        "kept": [math.log(case["kept share"])],
        "random": [float(case["random"])],
    }
    return [1.0, *(value for name in wanted for value in values[name])]


def loss_scale(loss: float, count: int) -> float:
    """A loss between 0 and 1 on a scale on which errors are about alike; `loss_of` is the way back."""
    return math.log(max(loss, 0.0) + 1 / count)


def loss_of(scaled: float, count: int) -> float:
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
