"""Do similarity and motifs foretell whether the lower layers of one network can feed the upper ones of another?"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import permutations
from typing import Any

from torch import Tensor

import simprune as sp
from simprune.core.registry import register
from simprune.studies.findings import Figure, Findings, Table
from simprune.studies.frame import Run, Subject
from simprune.studies.layers import balanced, layers_of, representations
from simprune.studies.networks import STEPS
from simprune.studies.statistics import bootstrap, kendall, mean
from simprune.studies.tools.choices import Choice, label_of, measure_of

MEASURES: tuple[Choice, ...] = (
    "gbs",
    {"name": "gbs", "center": True},
    {"name": "gbs", "k": 5},
    "cka",
    "cka_debiased",
)
# Halves that the paper stitches: kind -> steps of training of the bottom and of the top, as shares of the whole.
HALVES = {
    "trained/trained": (1.0, 1.0),
    "early/trained": (0.1, 1.0),
    "random/trained": (0.0, 1.0),
    "trained/random": (1.0, 0.0),
}
TRAINED = "trained/trained"
RATE = 0.02  # of the training of a map
CASE = ("kind", "pair", "below", "above", "apart", "depth", "direct", "trained map", "motif", "match")
MEANS = ("direct", "trained map", "motif", "match")
NOTE = "All layers: trained halves alone. Same depth: all halves. Intervals: pairs of networks drawn again."
RANKS = ("architecture", "cases", "by", "tau", "count")


@register(
    "study",
    "stitching",
    source="arXiv:2111.11165; arXiv:2106.07682; arXiv:2110.14633; arXiv:2412.11299",
    least={"pairs": 1, "steps": 1, "inputs": 2, "fit": 2, "epochs": 1, "k": 1},
    quick={"architectures": ("vgg",), "pairs": 2, "inputs": 200, "fit": 200},
)
def stitching(
    run: Run,
    *,
    architectures: Sequence[str] = ("residual", "vgg"),
    pairs: int = 3,
    steps: int = STEPS,
    halves: Sequence[str] = tuple(HALVES),
    measures: Sequence[Choice] = MEASURES,
    inputs: int = 500,
    fit: int = 500,
    epochs: int = 5,
    k: int = 5,
    layers: Sequence[str] = (),
) -> Findings:
    """Do the motif share and the similarity of layers follow the accuracy of networks that are stitched there?

    Protocol: the lower layers of one network feed the upper layers of another of the same architecture through one
    linear map per position: matched to the activations by least squares ("direct"), or trained on the labels; both
    networks are frozen and in evaluation mode. Both maps are fitted on training images and tested on others. With two
    trained networks every layer below meets every layer above (direct only); at matching depth there are also a bottom
    after a tenth of its training, a random bottom and a random top. The motif share is that of the lower network's last
    layer in use; similarities are between it and the layer that it replaces, both on test images. Rank correlations
    (Kendall) with the stitched accuracy; intervals draw pairs of networks. Baselines: the share of the variance of the
    replaced activations that the direct map explains ("match"), how far the layers are apart, and how deep the lower
    one is.

    Cost: about eight minutes of one core on CIFAR-10 at 8 pixels for three architectures; the quick version takes one.
    It is the training, L x L least squares and L trained maps per pair of networks.

    Args:
        architectures: of the networks that the study trains; your own are stitched within their class.
        pairs: of networks of one architecture.
        steps: of the whole training.
        halves: what is stitched at matching depth; of your own networks trained halves alone.
        measures: names, or mappings of a name and hyperparameters.
        inputs: test images.
        fit: training images for the maps.
        epochs: of the training of a map.
        k: neighbours in the graphs of which motifs are counted.
        layers: names of modules (* stands for anything) to stitch at; by default those along the depth.
    """
    unknown = [kind for kind in halves if kind not in HALVES]
    if unknown or not halves:
        raise ValueError(f"halves: expected some of {', '.join(HALVES)}; got {', '.join(unknown) or 'none'}")
    for choice in measures:
        measure_of(choice)
    images, labels = balanced(run.images, inputs, run.seed)
    cases: dict[str, list[list[Any]]] = {}
    for name, jobs in _jobs(run, architectures, pairs, steps, halves).items():
        cases[name] = []
        for kind, pair, below, above in run.progress(jobs, f"stitch {name}"):
            points = layers_of(above.model, layers)
            work = _Work(run, kind, below, above, points, images, labels)
            key = [kind, below.key, above.key, points, list(measures), len(images), fit, epochs, k]
            rows = run.step(["stitch", *key], partial(work.cases, measures, fit, epochs, k))
            cases[name] += [[kind, pair, *row] for row in rows]
    return _findings(cases, [label_of(choice) for choice in measures])


def _jobs(
    run: Run, architectures: Sequence[str], pairs: int, steps: int, halves: Sequence[str]
) -> dict[str, list[tuple]]:
    """(kind of halves, number of the pair, network below, network above) by architecture."""
    jobs: dict[str, list[tuple]] = {}
    if run.models:
        subjects = run.subjects((), 0)
        for number, (below, above) in enumerate(permutations(subjects, 2)):
            if below.architecture == above.architecture:
                jobs.setdefault(below.architecture, []).append((TRAINED, number, below, above))
        if not jobs:
            raise ValueError("stitching joins two networks of one class; got no two of the same")
        return jobs

    def network(architecture: str, seed: int, share: float) -> Subject:
        cut_short: dict[str, Any] = {} if share == 1 else {"whole": steps}
        model = run.network(architecture, seed, steps=round(share * steps), **cut_short)
        return Subject(f"{architecture} {seed}", architecture, model, f"{architecture} {seed} {share} of {steps}")

    seeds = max(pairs, 2)
    for architecture in architectures:
        for number in range(pairs):
            for kind in halves:
                below, above = HALVES[kind]
                ends = network(architecture, number, below), network(architecture, (number + 1) % seeds, above)
                jobs.setdefault(architecture, []).append((kind, number, *ends))
    return jobs


class _Work:
    """One pair of halves, stitched at all layers."""

    def __init__(
        self, run: Run, kind: str, below: Subject, above: Subject, points: list[str], images: Tensor, labels: Tensor
    ):
        self.run, self.kind, self.below, self.above = run, kind, below, above
        self.points, self.images, self.labels = points, images, labels

    def cases(self, measures: Sequence[Choice], fit: int, epochs: int, k: int) -> list[list[Any]]:
        """Rows of what `CASE` names from "below" on, and the similarities by every measure."""
        fitting = list(self.run.images.batches(fit, seed=self.run.seed_of("fit"), size=32))
        ends = [representations(end.model, self.images, self.points, "flatten") for end in (self.below, self.above)]
        motif = {
            name: float(sp.measures.get("gbs_motif", k=k).describe(rows, labels=self.labels))
            for name, rows in ends[0].items()
        }
        similar = [self._similarity(measure_of(choice), *ends) for choice in measures]
        count = len(self.points)
        both = [(i, j) for i in range(count) for j in range(count) if i == j or self.kind == TRAINED]
        rows = []
        for i, j in both:
            below, above = self.points[i], self.points[j]
            if not self._fits(ends[0][below], ends[1][above], below, above):
                continue
            direct = self._stitched(below, above, fitting)
            error = direct["relative_error"]
            match = None if error is None else 1 - error**2
            trained = self._stitched(below, above, fitting, epochs=epochs)["accuracy"] if i == j else None
            values = [similarity(below, above) for similarity in similar]
            depth = i / max(count - 1, 1)
            rows.append([below, above, abs(i - j), depth, direct["accuracy"], trained, motif[below], match, *values])
        return rows

    def _fits(self, below: Tensor, above: Tensor, first: str, second: str) -> bool:
        """Whether both are maps, both tokens or both vectors: all that a map per position can join."""
        shapes = [
            representations(end.model, self.images[:2], [name], "pool")[name].shape[1] == rows.shape[1]
            for end, rows, name in ((self.below, below, first), (self.above, above, second))
        ]
        return shapes[0] == shapes[1]  # a vector has the same rows pooled and flattened

    def _stitched(self, below: str, above: str, fitting: list, **training: Any) -> dict[str, Any]:
        """What is known of the stitched network, with its accuracy."""
        options = {"method": "task", "seeds": (0,), "lr": RATE, **training} if training else {}
        measure: Any = sp.functional.get("stitching_score", layer_a=below, layer_b=above, **options)
        score = measure(self.below.model, self.above.model, self.images, labels=self.labels, fit=fitting)
        return score.details

    def _similarity(
        self, measure: Any, below: dict[str, Tensor], above: dict[str, Tensor]
    ) -> Callable[[str, str], float]:
        first, second = ({name: measure.prepare(rows) for name, rows in end.items()} for end in (below, above))
        sign = 1 if measure.larger_is_more_similar else -1
        return lambda a, b: sign * float(measure.compare(first[a], second[b]))


def _findings(cases: dict[str, list[list[Any]]], measures: list[str]) -> Findings:
    columns = [*CASE, *measures]
    predictors = ["motif", "match", *measures, "apart", "depth"]
    ranks, figures, conclusions, controls, averages = [], [], [], [], []
    for name, rows in cases.items():
        records = [dict(zip(columns, row, strict=True)) for row in rows]
        for record in records:
            record["apart"] = -record["apart"]  # layers further apart should fit less
        matching = [record for record in records if not record["apart"]]
        trained = [record for record in records if record["kind"] == TRAINED]
        sets = {
            "all layers, direct": (trained, "direct"),
            "same depth, direct": (matching, "direct"),
            "same depth, trained map": (matching, "trained map"),
        }
        for label, (some, target) in sets.items():
            for predictor in predictors:
                ranks.append([name, label, predictor, list(_rank(some, predictor, target)), len(some)])
        for kind in dict.fromkeys(record["kind"] for record in matching):
            some = [record for record in matching if record["kind"] == kind]
            values = [mean([record[key] for record in some]) for key in MEANS + tuple(measures)]
            averages.append([name, kind, *values])
        for target in ("direct", "trained map"):
            kinds = dict.fromkeys(record["kind"] for record in matching)
            series = {kind: _points(matching, kind, target) for kind in kinds}
            data = {"x": "motif share of the layer below", "y": f"stitched accuracy, {target}", "series": series}
            caption = f"{name}: motif share against the accuracy of networks stitched at matching depth, {target}."
            figures.append(Figure(f"motif-{name}-{target.replace(' ', '-')}", "scatter", data, caption))
        mine = {label: {row[2]: row[3] for row in ranks if row[:2] == [name, label]} for label in sets}
        series = {label: [values[predictor] for predictor in predictors] for label, values in mine.items()}
        data = {"rows": predictors, "series": series, "label": "Kendall's tau with stitched accuracy", "chance": 0.0}
        caption = f"{name}: which number orders stitched networks by accuracy; bars are 95 % intervals over pairs."
        figures.append(Figure(f"tau-{name}", "dots", data, caption))
        sentences = [_sentence(name, label, values) for label, values in mine.items()]
        conclusions += [sentence for sentence in sentences if sentence]
        values = mine["all layers, direct"]
        controls.append(
            f"{name}, direct stitching of all layers: the variance that the map explains has tau "
            f"{_two(values['match'][0])}, the distance of the layers alone {_two(values['apart'][0])}, the depth of "
            f"the lower layer alone {_two(values['depth'][0])}."
        )
    every = [[name, *row] for name, rows in cases.items() for row in rows]
    columns = ("architecture", "halves", *MEANS, *measures)
    tables = [
        Table("tau", "Kendall's tau with the accuracy of stitched networks", RANKS, ranks, NOTE),
        Table("averages", "Means at matching depth", columns, averages),
        Table("cases", "All stitched networks", ("architecture", *CASE, *measures), every),
    ]
    limits = [
        "Cases of one pair of networks depend on each other; the intervals draw pairs, of which there are few.",
        "A trained map may learn what the layers below lack; the direct one cannot.",
    ]
    return Findings(conclusions, tables, figures, controls, limits)


def _points(records: list[dict[str, Any]], kind: str, target: str) -> dict[str, list[float]]:
    some = [record for record in records if record["kind"] == kind]
    return {"x": [record["motif"] for record in some], "y": [record[target] for record in some]}


def _rank(records: list[dict[str, Any]], predictor: str, target: str) -> tuple[float, float, float]:
    """Kendall's tau between two columns, with an interval that draws pairs of networks."""
    known = [record for record in records if record[predictor] is not None and record[target] is not None]
    pairs = [[record for record in known if record["pair"] == pair] for pair in {record["pair"] for record in known}]

    def tau(drawn: list[list[dict[str, Any]]]) -> float:
        some = [record for pair in drawn for record in pair]
        return kendall([record[predictor] for record in some], [record[target] for record in some])

    return bootstrap(pairs, tau, draws=200)


def _sentence(name: str, label: str, values: dict[str, list[float]]) -> str:
    known = {key: value[0] for key, value in values.items() if value[0] is not None and value[0] == value[0]}
    measures = {key: value for key, value in known.items() if key not in ("motif", "match", "apart", "depth")}
    if not measures or "motif" not in known:
        return ""
    best = max(measures, key=lambda key: measures[key])
    return (
        f"{name}, {label}: the motif share orders stitched networks with tau {_two(known['motif'])}, the best of the "
        f"measures, {best}, with {_two(measures[best])}."
    )


def _two(value: float | None) -> str:
    return "undefined" if value is None or value != value else f"{value:.2f}"
