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
from simprune.studies.frame import Findings, Run
from simprune.studies.networks import accuracy, agreement, answers, damage
from simprune.studies.summaries.prediction import findings_of
from simprune.studies.tools.left_out import SMALLEST, Case
from simprune.studies.tools.removals import Bench, calibration_of

CURVES = {  # what may go, and what chooses
    "width": (("channels", "heads"), "greedy"),
    "depth and width": (("channels", "heads", "blocks"), "greedy"),
    "random width": (("channels", "heads"), "random"),
}
TRIAL = 0.6  # share of the multiply-adds that the plan of the trial keeps
NOISES = 8  # draws of noise by which changed answers are simulated
GRID = np.geomspace(SMALLEST, 10, 61)  # damages at which they are simulated


@register(
    "study",
    "prediction",
    source="our own; intervals by leave-one-out residuals after Barber et al. (arXiv:1905.02928)",
    least={"seeds": 1, "inputs": 2},
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
    if not shares or not all(0 < share <= 1 for share in shares):
        raise ValueError(f"shares: expected some above 0 and at most 1; got {list(shares)}")
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
