"""The sanity check of graph-based similarity and of CKA."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

import simprune as sp
from simprune.core.registry import register
from simprune.studies.findings import Figure, Findings, Table
from simprune.studies.frame import Run, Subject
from simprune.studies.layers import balanced, check_layout, layers_of, representations
from simprune.studies.tools.choices import Choice, label_of, measure_of
from simprune.studies.tools.matching import match_layers

GBS_CENTRED = {"name": "gbs", "center": True}
MEASURES: tuple[Choice, ...] = (
    "gbs",
    GBS_CENTRED,
    {"name": "gbs", "k": 5},
    {"name": "gbs", "k": 5, "center": True},
    "cka",
    "cka_debiased",
    {"name": "cka_sparse", "top": 100},
    "rsa",
)
SHUFFLES = 3  # of the inputs, for the baseline


@register(
    "study",
    "layer_matching",
    source="arXiv:1905.00414; arXiv:2111.11165",
    least={"seeds": 2, "inputs": 2},
    quick={"seeds": 3, "inputs": 200, "architectures": ("residual", "vgg")},
)
def layer_matching(
    run: Run,
    *,
    measures: Sequence[Choice] = MEASURES,
    architectures: Sequence[str] = ("residual", "plain", "vgg", "vit"),
    seeds: int = 5,
    inputs: int = 500,
    layouts: Sequence[str] = ("flatten", "pool"),
    layers: Sequence[str] = (),
) -> Findings:
    """Is the most similar layer of a network from another seed the same layer, and by what does a measure see it?

    Protocol: networks of one architecture from several seeds are shown the same test images, as many of every class.
    For every pair of networks i < j and every layer of i, the match is the layer of j with the largest similarity (the
    first of equal ones). The accuracy is the share of layers that match themselves, a mean over pairs; chance is 1 / L.
    Every measure sees the same rows: once all entries of a layer's output ("flatten"), once means over positions
    ("pool"). The baseline repeats it with the images of network j in an order of its own: a measure that still matches
    layers then does so by what layers have in common for all images, such as their mean activation.

    Cost: about ten minutes of one core on CIFAR-10 at 8 pixels, most of it training; the quick version takes one. It is
    the training, one forward pass per network, layout and measure, and L x L comparisons per pair of networks.

    Args:
        measures: names, or mappings of a name and hyperparameters.
        architectures: of the networks that the study trains; your own networks are grouped by their class.
        seeds: networks of every architecture.
        inputs: test images.
        layouts: "flatten", "pool", or both.
        layers: names of modules (* stands for anything) to read at; by default those along the depth.
    """
    chosen = [measure_of(choice) for choice in measures]  # errors in them come before any training
    for layout in layouts:
        check_layout(layout)
    groups = _groups(run.subjects(architectures, seeds))
    images, labels = balanced(run.images, inputs, run.seed)
    jobs = [(name, layout, number) for name in groups for layout in layouts for number in range(len(chosen))]
    results: dict[tuple[str, str, str], dict[str, Any]] = {}
    names = {name: layers_of(group[0].model, layers) for name, group in groups.items()}
    for architecture, layout, number in run.progress(jobs, "match layers"):
        group = groups[architecture]

        def matched(group: list[Subject] = group, layout: str = layout, number: int = number) -> dict[str, Any]:
            points = names[group[0].architecture]
            return _matched(group, points, images, labels, chosen[number], layout, run.seed)

        key = ["match", [subject.key for subject in group], names[architecture], layout, measures[number], len(images)]
        results[architecture, layout, label_of(measures[number])] = run.step(key, matched)
    return _findings(results, names, {name: len(group) for name, group in groups.items()}, len(images))


def _groups(subjects: Sequence[Subject]) -> dict[str, list[Subject]]:
    """Networks by architecture; ValueError unless there are two of one."""
    groups: dict[str, list[Subject]] = defaultdict(list)
    for subject in subjects:
        groups[subject.architecture].append(subject)
    lone = [name for name, group in groups.items() if len(group) < 2]
    if lone or not groups:
        raise ValueError(
            f"layer_matching compares networks of one architecture; got a single one of {', '.join(lone) or 'none'}: "
            "name several models of the same class"
        )
    return dict(groups)


def _matched(
    group: Sequence[Subject],
    points: Sequence[str],
    images: Tensor,
    labels: Tensor,
    measure: Any,
    layout: str,
    seed: int,
) -> dict[str, Any]:
    """The matching of a group of networks, and that with shuffled inputs."""
    paired, shuffled = [], [[] for _ in range(SHUFFLES)]
    generator = torch.Generator().manual_seed(seed)
    for subject in group:
        rows = representations(subject.model, images, points, layout)
        paired.append(_prepared(measure, rows, labels))
        for repeat in shuffled:
            order = torch.randperm(len(images), generator=generator)
            repeat.append(_prepared(measure, {name: values[order] for name, values in rows.items()}, labels[order]))
    larger = measure.larger_is_more_similar
    result = asdict(match_layers(_blocks(measure, paired), larger, seed))
    chance = [match_layers(_blocks(measure, repeat), larger, seed) for repeat in shuffled]
    result["shuffled"] = [float(np.mean([getattr(one, key) for one in chance])) for key in ("accuracy", "low", "high")]
    return result | {key: result[key].tolist() for key in ("matrix", "layers")}


def _prepared(measure: Any, rows: dict[str, Tensor], labels: Tensor) -> list[Any]:
    return measure.prepare_all(rows, labels if measure.needs_labels else None)


def _blocks(measure: Any, prepared: list[list[Any]]) -> dict[tuple[int, int], np.ndarray]:
    """Similarities between the layers of every two networks, from one matrix of all layers."""
    count = len(prepared[0])
    every = {f"{i}/{layer}": item for i, items in enumerate(prepared) for layer, item in enumerate(items)}
    values = sp.measures.matrix(measure, every).values
    pairs = combinations(range(len(prepared)), 2)
    return {(i, j): values[i * count : (i + 1) * count, j * count : (j + 1) * count] for i, j in pairs}


def _findings(
    results: dict[tuple[str, str, str], dict[str, Any]],
    names: dict[str, list[str]],
    networks: dict[str, int],
    inputs: int,
) -> Findings:
    rows, by_layer = [], []
    for (architecture, layout, measure), result in results.items():
        chance = 1 / len(names[architecture])
        interval = [result[key] for key in ("accuracy", "low", "high")]
        rows.append([architecture, layout, measure, interval, result["shuffled"], chance])
        by_layer += [
            [architecture, layout, measure, layer, share]
            for layer, share in zip(names[architecture], result["layers"], strict=True)
        ]
    counts = ", ".join(f"{name} {count} networks" for name, count in networks.items())
    columns = ("architecture", "layout", "measure", "accuracy", "inputs shuffled", "chance")
    note = f"{counts}; {inputs} test images. Intervals: networks drawn again. Shuffled: means of {SHUFFLES} shuffles."
    tables = [
        Table("accuracy", "Share of layers that match themselves", columns, rows, note),
        Table("layers", "The same, layer by layer", (*columns[:3], "layer", "accuracy"), by_layer),
    ]
    figures = []
    for architecture, points in names.items():
        mine = {key: result for key, result in results.items() if key[0] == architecture}
        measures = list(dict.fromkeys(key[2] for key in mine))
        series: dict[str, list] = {}
        for layout in dict.fromkeys(key[1] for key in mine):
            of_layout = [mine[architecture, layout, measure] for measure in measures]
            series[layout] = [[result[key] for key in ("accuracy", "low", "high")] for result in of_layout]
            series[f"{layout}, shuffled"] = [result["shuffled"] for result in of_layout]
        data = {"rows": measures, "series": series, "label": "layers matched", "chance": 1 / len(points)}
        caption = f"{architecture}: accuracy of layer matching with 95 % intervals over networks; the line is chance."
        figures.append(Figure(f"accuracy-{architecture}", "dots", data, caption))
        for measure in [one for one in ("gbs", "cka") if one in measures]:
            layout = next(iter(dict.fromkeys(key[1] for key in mine)))
            values = mine[architecture, layout, measure]["matrix"]
            maps = {"values": values, "rows": points, "columns": points, "measure": "share", "across": "match"}
            caption = f"{architecture}, {layout}, {measure}: how often the layer of a row matched that of a column."
            figures.append(Figure(f"matches-{architecture}-{measure}", "similarity_map", maps, caption))
    return Findings(
        conclusions=_conclusions(results),
        tables=tables,
        figures=figures,
        controls=_controls(results, names),
        limits=[
            "A measure that matches layers well need not be good for pruning: the check is necessary, and no ranking.",
            "Layers are matched between networks that differ by seed alone; other widths and tasks are not covered.",
        ],
    )


def _percent(value: float | None) -> str:
    return "undefined" if value is None else f"{100 * value:.0f} %"


def _conclusions(results: dict[tuple[str, str, str], dict[str, Any]]) -> list[str]:
    accuracy = {key: result["accuracy"] for key, result in results.items()}
    sentences = []
    for architecture, layout in dict.fromkeys(key[:2] for key in accuracy):
        mine = {key[2]: value for key, value in accuracy.items() if key[:2] == (architecture, layout)}
        best = max(mine, key=lambda measure: -1.0 if mine[measure] is None else mine[measure])
        text = f"{architecture}, {layout}: {best} matches most layers ({_percent(mine[best])})"
        centred = label_of(GBS_CENTRED)
        if {"gbs", "cka", centred} <= set(mine):
            text += (
                f"; graph-based similarity {_percent(mine['gbs'])}, with centred features {_percent(mine[centred])}, "
                f"linear CKA {_percent(mine['cka'])}"
            )
        sentences.append(f"{text}.")
    return sentences


def _controls(results: dict[tuple[str, str, str], dict[str, Any]], names: dict[str, list[str]]) -> list[str]:
    sentences = []
    for architecture, layout in dict.fromkeys(key[:2] for key in results):
        mine = {key[2]: result["shuffled"][0] for key, result in results.items() if key[:2] == (architecture, layout)}
        above = max(mine, key=lambda measure: mine[measure])
        sentences.append(
            f"{architecture}, {layout}, inputs shuffled: chance is {_percent(1 / len(names[architecture]))}; measures "
            f"match {_percent(min(mine.values()))} to {_percent(mine[above])}, most of all {above}."
        )
    return sentences
