"""Calibration: how many inputs are enough to choose what goes and to repair the rest, of which kind, and how much the
draw matters."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import simprune as sp
from simprune.core.registry import register
from simprune.studies.frame import Figure, Findings, Images, Run, Table
from simprune.studies.networks import accuracy, agreement, answers, damage, shifted
from simprune.studies.statistics import bootstrap, mean
from simprune.studies.tools.removals import Bench

ENOUGH = 0.001  # agreement that the next hundred inputs have to add, or there are enough
STRUCTURES = ("channels", "heads", "blocks")
Case = dict[str, Any]


def _same(images: Images, rows: Tensor, generator: torch.Generator) -> Tensor:
    return images.train[rows]


def _moved(images: Images, rows: Tensor, generator: torch.Generator) -> Tensor:
    return shifted(images.train[rows], 0.25, generator)


def _noise(images: Images, rows: Tensor, generator: torch.Generator) -> Tensor:
    mean, deviation = images.train.mean(0), images.train.std(0)
    return mean + deviation * torch.randn((len(rows), *mean.shape), generator=generator)


def _half(images: Images, rows: Tensor, generator: torch.Generator) -> Tensor:
    order = torch.randperm(len(images.train), generator=generator)
    known = order[images.train_labels[order] < images.classes // 2]
    return images.train[known[: len(rows)]]


USUAL = "images of training"
KINDS = {  # of calibration inputs, by what they are
    USUAL: _same, "moved images": _moved, "images of half of the classes": _half, "noise": _noise,
}  # fmt: skip


@register(
    "study",
    "calibration",
    source="our own; the effect is reported by Williams and Aletras (arXiv:2311.09755) for language models",
    least={"seeds": 1, "numbers": 1, "draws": 1, "kinds_at": 1},
    quick={"architectures": ("residual", "vgg"), "numbers": (16, 64, 256), "draws": 3},
)
def calibration(
    run: Run,
    *,
    architectures: Sequence[str] = ("residual", "vgg", "vit", "mobilenet"),
    seeds: int = 1,
    numbers: Sequence[int] = (16, 32, 64, 128, 256, 512),
    draws: int = 5,
    share: float = 0.5,
    kinds_at: int = 256,
) -> Findings:
    """How many calibration inputs are enough, and does it matter which?

    Protocol: every network is made smaller with calibration inputs of every number and draw: scores are estimated on
    them, a plan keeps a share of the multiply-adds, and the repair in closed form uses the same inputs. Once more, the
    plan is that of all inputs, so that the inputs matter for the repair alone. The smaller network is compared with the
    original on test images. At one number of inputs their kind changes: images of training, moved ones, images of half
    of the classes, and noise of the same mean and deviation for every pixel. Intervals (95 %) are by bootstrap over
    networks; the deviation over draws is within a network.

    Cost: about 8 minutes of one core for 300 plans; the quick version takes one.

    Args:
        architectures: of the networks that are trained; without meaning for networks of your own.
        seeds: networks of every architecture.
        numbers: of calibration inputs.
        draws: of calibration inputs, of every number.
        share: of the multiply-adds that is kept.
        kinds_at: the number of inputs at which kinds are compared.
    """
    cases: list[Case] = []
    most = max(numbers)
    if max(most, kinds_at) > len(run.images.train):
        got = max(most, kinds_at)
        raise ValueError(f"numbers, kinds_at: expected at most {len(run.images.train)} images of training; got {got}")
    if not 0 < share <= 1:
        raise ValueError(f"share: expected more than 0 and at most 1; got {share}")
    for subject in run.progress(run.subjects(architectures, seeds), "draw calibration inputs"):
        whole = Bench(run, subject, _drawn(run, USUAL, most, 0), STRUCTURES)
        asked: list[tuple[str, str, int, int]] = []
        for draw in range(draws):
            asked += [(role, USUAL, number, draw) for role in ("both", "repair") for number in numbers]
            asked += [("both", kind, kinds_at, draw) for kind in KINDS if kind != USUAL or kinds_at not in numbers]
        for role, kind, number, draw in asked:
            key = ["calibrated", subject.key, role, kind, number, draw, most, share]
            done = run.step(key, partial(_done, whole, share, role, kind, number, draw))
            facts = {"network": subject.name, "role": role, "kind": kind, "number": number, "draw": draw}
            cases.append(facts | done)
    return findings_of(cases, kinds_at, run.seed)


def _drawn(run: Run, kind: str, number: int, draw: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of calibration inputs of a kind; the labels are not used."""
    generator = run.generator("inputs", kind, number, draw)
    rows = torch.randperm(len(run.images.train), generator=generator)[:number]
    inputs = KINDS[kind](run.images, rows, generator)
    labels = run.images.train_labels[rows][: len(inputs)]
    return list(zip(inputs.split(128), labels.split(128), strict=True))


def _done(bench: Bench, share: float, role: str, kind: str, number: int, draw: int) -> dict[str, float]:
    run, model, redundancy = bench.run, bench.subject.model, bench.redundancy
    inputs = _drawn(run, kind, number, draw)
    if role == "both":
        redundancy = sp.analyze(model, inputs, structures=STRUCTURES, seed=run.seed)
    plan = sp.plan(redundancy, {"macs": share}, seed=run.seed)
    small = sp.apply(plan, model)
    sp.reconstruct(small, plan, model, inputs)
    logits = answers(small, run.images.test)
    return {
        "agreement": agreement(logits, bench.on_test),
        "accuracy": accuracy(logits, run.images.test_labels),
        "damage": damage(logits, bench.on_test),
    }


def findings_of(cases: Sequence[Case], kinds_at: int, seed: int) -> Findings:
    """Tables, figures and sentences from what came of every draw of calibration inputs."""
    tables, series, sentences = [], {}, []
    for role, title in (("both", "Inputs for the plan and the repair"), ("repair", "Inputs for the repair alone")):
        some = [case for case in cases if case["role"] == role and case["kind"] == USUAL]
        rows = numbers_of(some, seed)
        tables.append(Table(role, title, NUMBERS, rows, NOTE))
        series[title.lower()] = {
            "x": [row[0] for row in rows], "y": [100 * row[1][0] for row in rows],
            "low": [_scaled(row[1][1]) for row in rows], "high": [_scaled(row[1][2]) for row in rows],
        }  # fmt: skip
        sentences.append(_sentence(title, rows))
    kinds = [
        [kind, *(_mean(some, rate, seed) for rate in ("agreement", "accuracy", "damage")), mean(_deviations(some))]
        for kind in KINDS
        if (some := [c for c in cases if c["kind"] == kind and c["number"] == kinds_at and c["role"] == "both"])
    ]
    columns = ("inputs", "agreement", "accuracy", "damage", "deviation over draws")
    tables.append(Table("kinds", f"Kinds of inputs, {kinds_at} of them", columns, kinds, NOTE))
    usual, worst = kinds[0], min(kinds, key=lambda row: row[1][0])
    sentences.append(
        f"With {kinds_at} {usual[0]} the agreement is {usual[1][0]:.1%}; "
        + ", ".join(f"with {row[0]} {row[1][0]:.1%}" for row in kinds[1:])
        + "."
    )
    data = {"x": "calibration inputs", "y": "agreement with the original (%)", "series": series, "log": True}
    figures = [
        Figure("numbers", "lines", data, "Agreement by the number of calibration inputs; bands: 95 % intervals.")
    ]
    controls = [f"{worst[0].capitalize()} is the worst of the kinds: agreement {worst[1][0]:.1%}."]
    return Findings(sentences, tables, figures, controls, LIMITS)


NUMBERS = ("inputs", "agreement", "accuracy", "damage", "deviation over draws", "next hundred inputs add (points)")
NOTE = (
    "Means over networks and draws with 95 % intervals by bootstrap over networks. Deviation: of the agreement, over "
    "draws of the inputs for one network."
)
LIMITS = (
    "Small networks with few channels need few inputs: a layer that reads D channels has D unknowns an output, so that "
    "wider layers need more.",
    "Damage and agreement are of networks that keep one share of the multiply-adds.",
)


def numbers_of(cases: Sequence[Case], seed: int) -> list[list[Any]]:
    """A row for every number of inputs: rates, their deviation over draws, and what the next hundred inputs add."""
    rows = []
    numbers = sorted({case["number"] for case in cases})
    for number in numbers:
        some = [case for case in cases if case["number"] == number]
        rates = [_mean(some, rate, seed) for rate in ("agreement", "accuracy", "damage")]
        rows.append([number, *rates, mean(_deviations(some)), None])
    for row, after in pairwise(rows):
        row[5] = 100 * (after[1][0] - row[1][0]) / (after[0] - row[0]) * 100
    return rows


def _mean(cases: Sequence[Case], rate: str, seed: int) -> list[float]:
    """The mean over networks of means over draws, and its interval."""
    networks: dict[str, list[float]] = {}
    for case in cases:
        networks.setdefault(case["network"], []).append(case[rate])
    return list(bootstrap([mean(values) for values in networks.values()], mean, seed))


def _deviations(cases: Sequence[Case]) -> list[float]:
    """Standard deviation of the agreement over draws, for every network."""
    networks: dict[str, list[float]] = {}
    for case in cases:
        networks.setdefault(case["network"], []).append(case["agreement"])
    return [float(torch.tensor(v, dtype=torch.float64).std()) for v in networks.values() if len(v) > 1]


def enough(rows: Sequence[Sequence[Any]]) -> int | None:
    """The first number of inputs behind which no hundred more add what counts; None where there is none."""
    for number, row in enumerate(rows[:-1]):
        if all(after[5] is None or after[5] < 100 * ENOUGH for after in rows[number:]):
            return row[0]
    return None


def _sentence(title: str, rows: Sequence[Sequence[Any]]) -> str:
    first, last, number = rows[0], rows[-1], enough(rows)
    said = (
        f"{title}: agreement rises from {first[1][0]:.1%} with {first[0]} to {last[1][0]:.1%} with {last[0]}; one draw "
        f"deviates by {100 * first[4]:.1f} points with {first[0]}, {100 * last[4]:.1f} with {last[0]}."
    )
    if number is None:
        return f"{said} With all numbers that were tried, a hundred more add at least {100 * ENOUGH:g} points."
    return f"{said} From {number} on, a hundred more add less than {100 * ENOUGH:g} points."


def _scaled(value: float) -> float | None:
    return None if math.isnan(value) else 100 * value
