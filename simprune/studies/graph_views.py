"""What graphs of inputs say along the depth of a network."""

from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

import simprune as sp
from simprune.core.registry import register
from simprune.studies.findings import Findings
from simprune.studies.frame import Run, Subject
from simprune.studies.layers import balanced, check_layout, layers_of, representations
from simprune.studies.networks import accuracy, answers
from simprune.studies.summaries.graph_views import STATISTICS, findings_of
from simprune.studies.tools.attacks import attacked, noised
from simprune.studies.tools.matching import match_layers

PGD_STEPS = 10


@register(
    "study",
    "graph_views",
    source="arXiv:2111.11165; arXiv:2111.12485",
    least={"seeds": 1, "inputs": 2, "degrees": 1},
    quick={
        "architectures": ("residual", "vgg"),
        "seeds": 2,
        "inputs": 200,
        "counts": (50, 100),
        "edges": (5, 50, 150),
        "attack": 0.1,
    },
)
def graph_views(
    run: Run,
    *,
    architectures: Sequence[str] = ("residual", "plain", "vgg", "vit"),
    seeds: int = 3,
    inputs: int = 500,
    counts: Sequence[int] = (50, 100, 200),
    degrees: Sequence[int] = (3, 5, 10, 30),
    edges: Sequence[int] = (1, 2, 5, 10, 20, 50, 100, 200, 400),
    attack: float = 0.03,
    layout: str = "flatten",
    layers: Sequence[str] = (),
) -> Findings:
    """How do graph-based similarity, motifs and modularity change along depth, and what do attacks do to the graphs?

    Protocol: test images, as many of every class, are the nodes; the cosines of a layer's outputs are the edges. For
    every network: the similarity of the graphs of all pairs of layers, with features as they are (published) and
    centred; the share of triangles within one class and the modularity of the classes for several degrees k and numbers
    of images, whose control are the same graphs with labels shuffled. For networks of several seeds: how many layers
    match themselves by CKA of graphs with few edges (`cka_sparse`), against the number of edges per image. Images are
    attacked by one step (FGSM) and by ten (PGD), on the network itself and on that of another seed, which transfers;
    the similarity of clean and attacked graphs is compared with that of noise of the same size per pixel.

    Cost: about three minutes of one core on CIFAR-10 at 8 pixels, apart from the training, which layer_matching shares;
    the quick version takes one with its training. It is eleven gradients by the images for each network, and forward
    passes.

    Args:
        architectures: of the networks that the study trains.
        seeds: networks of every architecture; one leaves out what compares seeds.
        inputs: test images.
        counts: further numbers of images for motifs and modularity.
        degrees: neighbours k of an image.
        edges: entries that a row of the sparse kernel matrix keeps.
        attack: largest change of a pixel, as a share of the range of all pixels.
        layout: "flatten" (published) or "pool".
        layers: names of modules (* stands for anything) to read at; by default those along the depth.
    """
    if attack <= 0:
        raise ValueError(f"attack must be above 0, got {attack}")
    check_layout(layout)
    groups: dict[str, list[Subject]] = {}
    for subject in run.subjects(architectures, seeds):
        groups.setdefault(subject.architecture, []).append(subject)
    names = {name: layers_of(group[0].model, layers) for name, group in groups.items()}
    images, labels = balanced(run.images, inputs, run.seed)
    sizes = sorted({len(balanced(run.images, count, run.seed)[0]) for count in (*counts, inputs)})
    kept = [count for count in edges if count < len(images)]
    common = [layout, len(images)]
    depth, sparse, changed = [], [], []
    maps: dict[str, dict[str, Any]] = {}
    for name, group in groups.items():
        points = names[name]
        keys = [subject.key for subject in group]
        first = partial(_maps, group[0], points, layout, images)
        maps[name] = run.step(["maps", keys[0], points, *common], first)
        if len(group) > 1:
            work = partial(_sparse, group, points, layout, images, kept)
            sparse += [[name, *row] for row in run.step(["edges", keys, points, *common, kept], work)]
        for number, subject in enumerate(run.progress(group, f"graphs of {name}")):
            work = partial(_statistics, run, subject, points, layout, sizes, degrees)
            rows = run.step(["statistics", subject.key, points, *common, sizes, list(degrees)], work)
            depth += [[name, *row] for row in rows]
            other = group[(number + 1) % len(group)] if len(group) > 1 else None
            work = partial(_attacks, run, subject, other, points, layout, images, labels, attack)
            key = ["attack", subject.key, other.key if other else None, points, *common, attack, PGD_STEPS]
            changed += [[name, *row] for row in run.step(key, work)]
    return findings_of(names, maps, depth, sparse, changed, len(images))


def _statistics(
    run: Run, subject: Subject, points: list[str], layout: str, sizes: list[int], degrees: Sequence[int]
) -> list[list[Any]]:
    """Rows of layer, statistic, degree, images, value, value with labels shuffled."""
    rows = []
    for size in sizes:
        images, labels = balanced(run.images, size, run.seed)
        features = representations(subject.model, images, points, layout)
        shuffled = labels[torch.randperm(len(labels), generator=run.generator("labels", size))]
        for degree in degrees:
            if degree >= size:
                continue
            for statistic in STATISTICS:
                measure = sp.measures.get(statistic, k=degree)
                for layer, values in features.items():
                    pair = [float(measure.describe(values, labels=classes)) for classes in (labels, shuffled)]
                    rows.append([layer, statistic, degree, size, *pair])
    return rows


def _maps(subject: Subject, points: list[str], layout: str, images: Tensor) -> dict[str, Any]:
    features = representations(subject.model, images, points, layout)
    choices = {"gbs": sp.measures.get("gbs"), "gbs centred": sp.measures.get("gbs", center=True), "cka": "cka"}
    return {label: sp.measures.matrix(measure, features).values.tolist() for label, measure in choices.items()}


def _sparse(
    group: Sequence[Subject], points: list[str], layout: str, images: Tensor, edges: Sequence[int]
) -> list[list[Any]]:
    """Rows of entries per row, kernel, accuracy of layer matching with its interval, and the full kernel's accuracy."""
    features = [representations(subject.model, images, points, layout) for subject in group]
    count = len(points)
    rows = []
    for kernel in ("cosine", "linear"):
        for top in [*edges, len(images)]:
            measure = sp.measures.get("cka_sparse", top=top, kernel=kernel)
            prepared = [measure.prepare(values) for one in features for values in one.values()]
            values = sp.measures.matrix(measure, {str(number): item for number, item in enumerate(prepared)}).values
            pairs = combinations(range(len(group)), 2)
            blocks = {(i, j): values[i * count :, j * count :][:count, :count] for i, j in pairs}
            matching = match_layers(blocks)
            rows.append([kernel, top, [matching.accuracy, matching.low, matching.high]])
    return rows


def _attacks(
    run: Run,
    subject: Subject,
    other: Subject | None,
    points: list[str],
    layout: str,
    images: Tensor,
    labels: Tensor,
    attack: float,
) -> list[list[Any]]:
    """Rows of kind of change, layer, similarity of clean and changed graphs, centred the same, accuracy."""
    bounds = (float(run.images.test.min()), float(run.images.test.max()))
    size = attack * (bounds[1] - bounds[0])
    changed = {
        "noise": noised(images, size, run.seed_of("noise"), bounds),
        "FGSM": attacked(subject.model, images, labels, size, bounds=bounds),
        "PGD": attacked(subject.model, images, labels, size, PGD_STEPS, bounds),
    }
    if other is not None:
        changed["PGD of another seed"] = attacked(other.model, images, labels, size, PGD_STEPS, bounds)
    measures = [sp.measures.get("gbs"), sp.measures.get("gbs", center=True)]
    clean = {
        layer: [measure.prepare(values) for measure in measures]
        for layer, values in representations(subject.model, images, points, layout).items()
    }
    rows = []
    for kind, inputs in changed.items():
        right = accuracy(answers(subject.model, inputs), labels)
        for layer, values in representations(subject.model, inputs, points, layout).items():
            scores = [float(m.compare(a, m.prepare(values))) for m, a in zip(measures, clean[layer], strict=True)]
            rows.append([kind, layer, *scores, right])
    return rows
