"""Transferability: tables, figures and sentences from what scores said of networks, and what these reached."""

import math
from typing import Any

import numpy as np

from simprune.studies.findings import Figure, Findings, Table
from simprune.studies.statistics import bootstrap, kendall, mean
from simprune.studies.tools.rank import kendall_interval
from simprune.studies.tools.transfer import SCORES

TRUTHS = ("fine-tuned", "probe on test")
BASELINES = ("parameters", "random score")


def findings_of(rows: list[dict[str, Any]], by_layer: list[dict[str, Any]], seed: int) -> Findings:
    groups = {"all": rows} | {
        name: [row for row in rows if row["architecture"] == name]
        for name in dict.fromkeys(row["architecture"] for row in rows)
    }
    random = np.random.default_rng(seed).random(len(rows)).tolist()
    for row, score in zip(rows, random, strict=True):
        row["scores"] |= {"parameters": row["parameters"], "random score": score}
    ranks = [
        [truth, group, name, list(_tau(members, name, truth)), len(members)]
        for truth in TRUTHS
        for group, members in groups.items()
        for name in (*SCORES, *BASELINES)
    ]
    layers = _layer_ranks(by_layer)
    seconds = []
    for name in (*SCORES, "fine-tuned"):
        share = mean([row["seconds"][name] / row["seconds"]["fine-tuned"] for row in rows])
        seconds.append([name, mean([row["seconds"][name] for row in rows]), share])
    reached = [
        [row["name"], *(row["truths"][truth] for truth in TRUTHS), *(row["scores"][name] for name in SCORES)]
        for row in rows
    ]
    tables = [
        Table(
            "tau",
            "Kendall's tau between score and accuracy",
            ("truth", "networks", "score", "tau", "count"),
            ranks,
            "Intervals: networks drawn again.",
        ),
        Table("layers", "Layers of one network: tau with a linear probe", ("networks", "score", "tau"), layers),
        Table("seconds", "Processor seconds of a network", ("score", "seconds", "share of a fine-tuning"), seconds),
        Table("networks", "Accuracy reached and scores", ("network", *TRUTHS, *SCORES), reached),
    ]
    limits = [
        "Few networks, small and pretrained on tasks made from one set of images: intervals are wide, and large "
        "pretrained networks may behave otherwise.",
        "An untrained network and one of random labels are among the sources; what tells these apart need not tell "
        "good sources apart.",
    ]
    pooled = {row[2]: row[3] for row in ranks if row[:2] == ["fine-tuned", "all"]}
    conclusions = [*_conclusions(ranks, pooled), *_of_layers(layers)]
    share = next(row[2] for row in seconds if row[0] == "motif share")
    conclusions.append(f"The motif share costs {100 * share:.1f} % of a fine-tuning here.")
    low, high = pooled["random score"][1:]
    controls = [
        f"A random score has tau {pooled['random score'][0]:.2f} ({low:.2f} to {high:.2f}), the number of parameters "
        f"{pooled['parameters'][0]:.2f}."
    ]
    return Findings(conclusions, tables, _figures(ranks, groups), controls, limits)


def _tau(rows: list[dict[str, Any]], score: str, truth: str) -> tuple[float, float, float]:
    return kendall_interval([row["scores"][score] for row in rows], [row["truths"][truth] for row in rows])


def _figures(ranks: list[list[Any]], groups: dict[str, list[dict[str, Any]]]) -> list[Figure]:
    figures = []
    names = [*SCORES, *BASELINES]
    for truth in TRUTHS:
        taus = {(row[1], row[2]): row[3] for row in ranks if row[0] == truth}
        series = {group: [taus[group, name] for name in names] for group in groups}
        data = {"rows": names, "series": series, "label": f"Kendall's tau with accuracy, {truth}", "chance": 0.0}
        caption = f"Scores against the accuracy of networks, {truth}; bars are 95 % intervals over networks."
        figures.append(Figure(f"tau-{truth.replace(' ', '-')}", "dots", data, caption))
    curves = {
        group: {
            "x": [row["scores"]["motif share"] for row in members],
            "y": [row["truths"]["fine-tuned"] for row in members],
        }
        for group, members in groups.items()
        if group != "all"
    }
    data = {"x": "motif share", "y": "accuracy after fine-tuning", "series": curves}
    caption = "Motif share against the accuracy after fine-tuning; a point is a network."
    return [*figures, Figure("motif", "scatter", data, caption)]


def _conclusions(ranks: list[list[Any]], pooled: dict[str, list[float]]) -> list[str]:
    """What every score is worth, the best first."""
    tuned = [row for row in ranks if row[0] == "fine-tuned" and row[1] != "all"]
    sentences = []
    for name in sorted(SCORES, key=lambda name: -pooled[name][0] if pooled[name][0] == pooled[name][0] else math.inf):
        value, low, high = pooled[name]
        within = mean([row[3][0] for row in tuned if row[2] == name])
        sentences.append(
            f"{name} orders accuracy after fine-tuning with tau {value:.2f} ({low:.2f} to {high:.2f}) over all "
            f"networks, and {within:.2f} within an architecture."
        )
    return sentences


def _of_layers(layers: list[list[Any]]) -> list[str]:
    taus = {row[1]: row[2][0] for row in layers if row[0] == "all"}
    text = ", ".join(f"{name} {value:.2f}" for name, value in taus.items())
    return [f"Layers of one network by a linear probe on them, mean tau over networks: {text}."]


def _layer_ranks(by_layer: list[dict[str, Any]]) -> list[list[Any]]:
    """Rows of networks, score, mean tau over networks with an interval that draws networks."""
    rows = []
    groups = {"all": by_layer} | {
        name: [one for one in by_layer if one["architecture"] == name]
        for name in dict.fromkeys(one["architecture"] for one in by_layer)
    }
    for group, members in groups.items():
        for name in (*SCORES, "depth"):
            if name == "LEEP":
                continue
            taus = []
            for one in members:
                scores = [at if name == "depth" else row[2][name] for at, row in enumerate(one["layers"])]
                known = [(score, row[1]) for score, row in zip(scores, one["layers"], strict=True) if score is not None]
                taus.append(kendall([score for score, _ in known], [truth for _, truth in known]))
            rows.append([group, name, list(bootstrap(taus, mean))])
    return rows
