"""Graph views: tables, figures and sentences from the rows of networks."""

from itertools import pairwise
from typing import Any

from simprune.studies.findings import Figure, Findings, Table
from simprune.studies.statistics import mean

STATISTICS = ("gbs_motif", "graph_modularity")


def findings_of(
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
