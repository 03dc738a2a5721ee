"""What graphs of inputs say along the depth of a network."""

from collections.abc import Sequence
from functools import partial
from itertools import combinations, pairwise
from typing import Any

import torch
from torch import Tensor

import simprune as sp
from simprune.core.registry import register
from simprune.studies._attacks import attacked, noised
from simprune.studies._matching import match_layers
from simprune.studies.findings import Figure, Findings, Table
from simprune.studies.frame import Run, Subject
from simprune.studies.layers import balanced, check_layout, layers_of, representations
from simprune.studies.networks import accuracy, answers
from simprune.studies.statistics import mean

STATISTICS = ("gbs_motif", "graph_modularity")
PGD_STEPS = 10


@register(
    "study",
    "graph_views",
    source="arXiv:2111.11165; arXiv:2111.12485",
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

    Cost: the training, eleven gradients by the images for each network, and forward passes.

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
    return _findings(names, maps, depth, sparse, changed, len(images))


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


def _findings(
    names: dict[str, list[str]],
    maps: dict[str, dict[str, Any]],
    depth: list[list[Any]],
    sparse: list[list[Any]],
    changed: list[list[Any]],
    inputs: int,
) -> Findings:
    """The findings from rows that begin with the architecture, one a network, or a group of networks for `sparse`."""
    by_depth, attacks = _by_depth(names, depth), _by_change(names, changed)
    columns = ("architecture", "statistic", "k", "images", "first layer", "last layer", "labels shuffled", "falls")
    changes = ("architecture", "change", "accuracy", "first layer", "last layer", "first, centred", "last, centred")
    note = "Means over networks; falls: the number of layers at which the mean is below that of the layer before."
    tables = [
        Table("depth", "Classes in the graphs along depth", columns, by_depth, note),
        Table("attacks", "Similarity of clean and changed images", changes, attacks),
        Table(
            "edges", "CKA of sparse graphs: layers matched", ("architecture", "kernel", "entries", "accuracy"), sparse
        ),
    ]
    chance = {statistic: mean([row[6] for row in by_depth if row[1] == statistic]) for statistic in STATISTICS}
    controls = [
        f"Labels shuffled: {100 * chance['gbs_motif']:.1f} % of triangles lie within one class on average, and the "
        f"modularity is {chance['graph_modularity']:.3f}."
    ]
    limits = [
        "Motif share and modularity say how far neighbours have one class; that they predict what a network is worth "
        "elsewhere is another question (transferability).",
        "Attacks here know no defence and the networks have none.",
    ]
    conclusions = [*_of_depth(names, by_depth, inputs), *_of_edges(sparse), *_of_attacks(attacks)]
    figures = [*_curves(names, depth, changed, inputs), *_map_figures(names, maps), *_edge_figures(sparse, inputs)]
    return Findings(conclusions, tables, figures, controls, limits)


def _along(points: list[str], rows: list[list[Any]], layer: int, value: int) -> list[float]:
    """Means of the column `value` over networks, by the layer that the column `layer` names."""
    return [mean([row[value] for row in rows if row[layer] == point]) for point in points]


def _by_depth(names: dict[str, list[str]], depth: list[list[Any]]) -> list[list[Any]]:
    """Rows of architecture, statistic, degree, images, value at the first and last layer, by chance, falls."""
    rows = []
    for name, statistic, degree, size in dict.fromkeys((row[0], *row[2:5]) for row in depth):
        some = [row for row in depth if (row[0], *row[2:5]) == (name, statistic, degree, size)]
        values, chance = (_along(names[name], some, 1, at) for at in (5, 6))
        falls = sum(after < before for before, after in pairwise(values))
        rows.append([name, statistic, degree, size, values[0], values[-1], mean(chance), falls])
    return rows


def _by_change(names: dict[str, list[str]], changed: list[list[Any]]) -> list[list[Any]]:
    """Rows of architecture, change, accuracy, similarity at the first and last layer, and the same centred."""
    rows = []
    for name, kind in dict.fromkeys((row[0], row[1]) for row in changed):
        some = [row for row in changed if (row[0], row[1]) == (name, kind)]
        plain, centred = (_along(names[name], some, 2, at) for at in (3, 4))
        rows.append([name, kind, mean([row[5] for row in some]), plain[0], plain[-1], centred[0], centred[-1]])
    return rows


def _curves(names: dict[str, list[str]], depth: list[list[Any]], changed: list[list[Any]], inputs: int) -> list[Figure]:
    figures = []
    for name, points in names.items():
        numbers = list(range(1, len(points) + 1))
        for statistic in STATISTICS:
            mine = [row for row in depth if row[0] == name and row[2] == statistic and row[4] == inputs]
            curves = {
                f"k = {degree}": {"x": numbers, "y": _along(points, [row for row in mine if row[3] == degree], 1, 5)}
                for degree in dict.fromkeys(row[3] for row in mine)
            }
            data = {"x": "layer", "y": statistic.replace("_", " "), "series": curves}
            caption = f"{name}: {statistic} along depth, {inputs} images, a mean over networks."
            figures.append(Figure(f"{statistic}-{name}", "lines", data, caption))
        mine = [row for row in changed if row[0] == name]
        curves = {
            kind: {"x": numbers, "y": _along(points, [row for row in mine if row[1] == kind], 2, 4)}
            for kind in dict.fromkeys(row[1] for row in mine)
        }
        data = {"x": "layer", "y": "similarity with clean images", "series": curves}
        caption = f"{name}: graph-based similarity (centred) of clean and changed images along depth."
        figures.append(Figure(f"attack-{name}", "lines", data, caption))
    return figures


def _map_figures(names: dict[str, list[str]], maps: dict[str, dict[str, Any]]) -> list[Figure]:
    figures = []
    for name, by_measure in maps.items():
        for label, values in by_measure.items():
            data = {"values": values, "rows": names[name], "columns": names[name], "measure": label}
            caption = f"{name}: {label} between the layers of one network."
            figures.append(Figure(f"map-{name}-{label.replace(' ', '-')}", "similarity_map", data, caption))
    return figures


def _edge_figures(sparse: list[list[Any]], inputs: int) -> list[Figure]:
    curves = {}
    for name, kernel in dict.fromkeys((row[0], row[1]) for row in sparse):
        some = [row for row in sparse if (row[0], row[1]) == (name, kernel)]
        curve = {key: [row[3][at] for row in some] for at, key in enumerate(("y", "low", "high"))}
        curves[f"{name}, {kernel}"] = {"x": [row[2] for row in some], **curve}
    if not curves:
        return []
    data = {"x": "entries of a row", "y": "layers matched", "log": True, "series": curves}
    caption = f"CKA of sparse graphs: layer matching by number of edges; {inputs} entries are the whole kernel."
    return [Figure("edges", "lines", data, caption)]


def _of_depth(names: dict[str, list[str]], by_depth: list[list[Any]], inputs: int) -> list[str]:
    sentences = []
    for name, points in names.items():
        for statistic in STATISTICS:
            some = [row for row in by_depth if row[0] == name and row[1] == statistic and row[3] == inputs]
            first, last = (mean([row[at] for row in some]) for at in (4, 5))
            falls, steps = sum(row[7] for row in some), len(some) * (len(points) - 1)
            sentences.append(
                f"{name}: {statistic} goes from {first:.2f} at the first layer to {last:.2f} at the last, a mean over "
                f"degrees; it falls at {falls} of {steps} steps."
            )
    return sentences


def _of_edges(sparse: list[list[Any]]) -> list[str]:
    sentences = []
    for name, kernel in dict.fromkeys((row[0], row[1]) for row in sparse):
        *some, full = [row for row in sparse if (row[0], row[1]) == (name, kernel)]
        if some:
            best = max(some, key=lambda row: row[3][0])
            sentences.append(
                f"{name}, {kernel} kernel: sparse CKA matches most layers with {best[2]} entries a row "
                f"({100 * best[3][0]:.0f} %; the whole kernel {100 * full[3][0]:.0f} %)."
            )
    return sentences


def _of_attacks(attacks: list[list[Any]]) -> list[str]:
    noise = {row[0]: row for row in attacks if row[1] == "noise"}
    return [
        f"{name}, {kind}: accuracy {100 * right:.0f} % (noise of the size: {100 * noise[name][2]:.0f} %), centred "
        f"similarity {first:.2f} at the first layer, {last:.2f} at the last (noise: {noise[name][5]:.2f}, "
        f"{noise[name][6]:.2f})."
        for name, kind, right, _, _, first, last in attacks
        if kind != "noise"
    ]
