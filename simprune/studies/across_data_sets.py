"""Similarity with gradients between networks of different data sets."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import simprune as sp
from simprune.core.registry import register
from simprune.measures.gradients import sketched
from simprune.studies.findings import Figure, Findings, Table
from simprune.studies.frame import Run
from simprune.studies.images import Images
from simprune.studies.layers import layers_of
from simprune.studies.networks import accuracy, answers
from simprune.studies.statistics import mean
from simprune.studies.tools.rank import kendall_interval
from simprune.studies.tools.related import classes_sharing, noisy, permuted_pixels
from simprune.trace.gradients import capture_gradients
from simprune.trace.sites import Site

FAMILIES = ("classes", "pixels", "noise")
INDICES = {"CKA": ("cka", "gradient_cka"), "NBS": ("normalized_bures", "gradient_nbs")}
PARTS = ("features", "gradients", "both")
VALUES = ("value", "shuffled")
NOISE = 1.5  # the largest standard deviation of noise, as a multiple of that of the pixels
Rows = dict[str, tuple[Tensor, Tensor]]  # features and gradients of every layer


@register(
    "study",
    "across_data_sets",
    source="arXiv:2003.11498; Clarkson, Woodruff 2013",
    least={"levels": 2, "seeds": 1, "steps": 1, "inputs": 2, "sketch": 1, "shuffles": 1},
    quick={"seeds": 1, "steps": 150, "inputs": (120, 90), "sketch": 32, "levels": 3},
)
def across_data_sets(
    run: Run,
    *,
    families: Sequence[str] = FAMILIES,
    levels: int = 4,
    architecture: str = "residual",
    seeds: int = 2,
    steps: int = 400,
    inputs: Sequence[int] = (400, 300),
    sketch: int = 64,
    shuffles: int = 3,
) -> Findings:
    """Does similarity with gradients order networks by how their data sets are related?

    Protocol: a reference network is compared with networks trained from other seeds on data sets at a growing distance
    from its own: fewer classes in common, more pixels permuted, more noise. Every test image is described by a layer's
    features, by the gradient of its soft log likelihood there, or by both (the product of their kernels), which are
    compared by CKA and by normalised Bures similarity (NBS), a mean over layers. Both networks see the reference's test
    images ("common"), compared exactly and sketched to a few random sums of images; or each sees images of its own data
    set, of another number, and both sides are sketched by the same sums ("own"), as published; this again with
    images in the order of their classes. The baseline shuffles the images of one side: what remains is not similarity.
    Kendall's tau between the relation and the value, over networks whose relations differ; intervals draw networks.

    Cost: the training, a forward and a backward pass per network and way, and kernels of N x N per layer; the quick
    version takes a minute of one core.

    Args:
        families: of related data sets: "classes", "pixels", "noise".
        levels: of the distance in every family, 0 included.
        architecture: of all networks.
        seeds: networks of every level.
        steps: of their training.
        inputs: test images of the reference, and of the other networks' own data sets.
        sketch: rows of a sketch.
        shuffles: of the baseline.
    """
    if run.models:
        raise ValueError("across_data_sets trains its own networks, on data sets that it relates; leave out models")
    unknown = [family for family in families if family not in FAMILIES]
    if unknown or not families:
        raise ValueError(f"families: expected some of {', '.join(FAMILIES)}; got {', '.join(unknown) or 'none'}")
    if "classes" in families and run.images.classes < 4:
        raise ValueError(f"families: classes needs images of at least 4 classes; got {run.images.classes}")
    if len(inputs) != 2:
        raise ValueError(f"inputs: expected two numbers, of the reference's images and of others; got {list(inputs)}")
    sp.measures.get("gradient_cka", sketch=sketch)
    rows, reached = [], []
    for family in families:
        tasks = _tasks(run.images, family, levels, run.seed)
        network = partial(_network, run, architecture, steps)
        for level, seed in run.progress([(i, j) for i in range(levels) for j in range(seeds)], f"compare {family}"):
            task = tasks[level]
            key = [family, task.relation, task.images.digest, tasks[0].images.digest, architecture, steps, seed]
            work = _Work(run, tasks[0], task, inputs, sketch, shuffles)
            result = run.step(["compare", *key, list(inputs), sketch, shuffles], partial(work.compared, network, seed))
            reached.append([family, task.relation, seed, result["accuracy"]])
            rows += [[family, task.relation, seed, *row] for row in result["rows"]]
    return _findings(rows, reached, sketch, inputs)


@dataclass(frozen=True)
class Task:
    """A data set, and how near it is to the reference's: 1 for the same."""

    relation: float
    images: Images


def _tasks(images: Images, family: str, levels: int, seed: int) -> list[Task]:
    """Data sets of falling relation to the first."""
    shares = [1 - level / (levels - 1) for level in range(levels)]
    if family == "classes":
        size = images.classes // 2
        pools = [classes_sharing(images.classes, size, round(share * size), seed)[1] for share in shares]
        return [Task(round(share * size) / size, images.only(pool)) for share, pool in zip(shares, pools, strict=True)]
    change: Callable[[Tensor, float, int], Tensor] = permuted_pixels if family == "pixels" else noisy
    tasks = []
    for share in shares:
        size = (1 - share) * (1.0 if family == "pixels" else NOISE)
        other = seed if family == "pixels" else seed + 1  # positions are permuted alike, noise is drawn anew
        parts = change(images.train, size, seed), change(images.test, size, other)
        changed = images if share == 1 else replace(images, train=parts[0], test=parts[1])
        tasks.append(Task(share, changed))
    return tasks


def _network(run: Run, architecture: str, steps: int, task: Task, seed: int) -> nn.Module:
    return run.network(architecture, seed, images=task.images, steps=steps)


class _Work:
    """The comparison of the reference with one network of another data set."""

    def __init__(self, run: Run, reference: Task, task: Task, inputs: Sequence[int], sketch: int, shuffles: int):
        self.run, self.reference, self.task = run, reference, task
        self.inputs, self.sketch, self.shuffles = inputs, sketch, shuffles

    def compared(self, network: Callable[[Task, int], nn.Module], seed: int) -> dict[str, Any]:
        """Accuracy on its own data, and rows of way, part, index, similarity, and that with one side shuffled."""
        first, second = network(self.reference, 0), network(self.task, seed + 1)
        theirs = self.reference.images
        order = torch.randperm(len(theirs.test), generator=self.run.generator("first"))[: self.inputs[0]]
        own = self.task.images
        other = torch.randperm(len(own.test), generator=self.run.generator("second"))[: self.inputs[1]]
        here = order[theirs.test_labels[order].argsort(stable=True)]
        there = other[own.test_labels[other].argsort(stable=True)]
        common = _read(first, theirs.test[order]), _read(second, theirs.test[order])
        ways: dict[str, tuple[Rows, Rows, int | None]] = {
            "common": (*common, None),
            "common, sketched": (*common, self.sketch),
            "own": (common[0], _read(second, own.test[other]), self.sketch),
            "own, by class": (_read(first, theirs.test[here]), _read(second, own.test[there]), self.sketch),
        }
        rows = []
        for way, (a, b, sketch) in ways.items():
            for part in PARTS:
                for index in INDICES:
                    values = [self._values(a[x], b[y], part, index, sketch) for x, y in zip(a, b, strict=True)]
                    rows.append([way, part, index, *(mean([one[i] for one in values]) for i in range(len(VALUES)))])
        return {"accuracy": accuracy(answers(second, own.test), own.test_labels), "rows": rows}

    def _values(
        self, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], part: str, index: str, sketch: int | None
    ) -> list[float]:
        """The similarity of one layer, and its mean with the rows of `b` shuffled."""
        result = [similarity(a, b, part, index, sketch, self.run.seed)]
        generator = self.run.generator("shuffle")
        shuffled = []
        for _ in range(self.shuffles):
            order = torch.randperm(len(b[0]), generator=generator)
            shuffled.append(similarity(a, (b[0][order], b[1][order]), part, index, sketch, self.run.seed))
        return [*result, mean(shuffled)]


def similarity(
    a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], part: str, index: str, sketch: int | None = None, seed: int = 0
) -> float:
    """Similarity of two layers by features, gradients or both.

    Args:
        a, b: features (N, D) and gradients (N, D) of a layer; with a sketch N may differ.
        part: "features", "gradients" or "both".
        index: "CKA" or "NBS".
        sketch: number of random sums of inputs that stand for the inputs; None for the inputs themselves.
        seed: of the sums, the same on both sides.

    >>> X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    >>> round(similarity((X, X), (2 * X, X), "both", "NBS"), 6)
    1.0
    """
    plain, with_gradients = INDICES[index]
    with warnings.catch_warnings():  # of sketches, which raise values: the shuffled ones stand beside them
        warnings.simplefilter("ignore", sp.measures.DegenerateWarning)
        if part == "both":
            measure = sp.measures.get(with_gradients, sketch=sketch, seed=seed)
            return float(measure.compare(*(measure.prepare(side[0], gradients=side[1]) for side in (a, b))))
        rows = [side[PARTS.index(part)].double() for side in (a, b)]
        if sketch is not None:
            rows = [sketched([values], sketch, 1, seed)[0] for values in rows]
        return float(sp.measures.get(plain)(*rows))


def _read(model: nn.Module, images: Tensor) -> Rows:
    sites = [Site(name, layout="flatten") for name in layers_of(model)]
    features, gradients = capture_gradients(model, list(images.split(128)), sites)
    return {name: (features[name], gradients[name]) for name in features}


COLUMNS = ("family", "way", "of", "index")


def _findings(rows: list[list[Any]], reached: list[list[Any]], sketch: int, inputs: Sequence[int]) -> Findings:
    taus, levels = [], []
    for key in dict.fromkeys((row[0], *row[3:6]) for row in rows):
        some = [row for row in rows if (row[0], *row[3:6]) == key]
        relation, values, shuffled = ([row[at] for row in some] for at in (1, 6, 7))
        above = [value - chance for value, chance in zip(values, shuffled, strict=True)]
        ranks = [list(kendall_interval(numbers, relation, leave_out_ties=True)) for numbers in (values, above)]
        taus.append([*key, *ranks, mean(values), mean(shuffled)])
        for one in sorted(set(relation), reverse=True):
            at = [row for row in some if row[1] == one]
            levels.append([*key, one, mean([row[6] for row in at]), mean([row[7] for row in at])])
    tables = [
        Table(
            "tau",
            "Kendall's tau between relation and similarity",
            (*COLUMNS, "tau", "tau above shuffled", "mean", "mean shuffled"),
            taus,
            "Intervals: networks drawn again. Shuffled: the images of one side in another order.",
        ),
        Table("levels", "Similarity by relation", (*COLUMNS, "relation", "similarity", "shuffled"), levels),
        Table("accuracy", "Accuracy on their own data", ("family", "relation", "seed", "accuracy"), reached),
    ]
    limits = [
        f"Across different images ({inputs[0]} and {inputs[1]}), a sketch pairs images at random: absolute values mean "
        "nothing, and values of other sketches do not compare.",
        "Relations are ours: that fewer classes in common make networks less alike is plausible, not known.",
    ]
    return Findings(_conclusions(taus), tables, _figures(levels), _controls(taus, sketch), limits)


def _figures(levels: list[list[Any]]) -> list[Figure]:
    figures = []
    for family, way in dict.fromkeys((row[0], row[1]) for row in levels):
        series = {}
        for part in PARTS:
            some = [row for row in levels if row[:4] == [family, way, part, "CKA"]]
            for label, at in ((part, 5), (f"{part}, shuffled", 6)):
                series[label] = {"x": [row[4] for row in some], "y": [row[at] for row in some]}
        data = {"x": f"relation ({family})", "y": "CKA", "series": series}
        caption = f"{family}, {way}: CKA with the reference by relation of the data sets, a mean over layers and seeds."
        figures.append(Figure(f"{family}-{way.replace(', ', '-').replace(' ', '-')}", "lines", data, caption))
    return figures


def _conclusions(taus: list[list[Any]]) -> list[str]:
    sentences = []
    for family, way in dict.fromkeys((row[0], row[1]) for row in taus):
        by_part = []
        for part in PARTS:
            values = [row[4][0] for row in taus if row[:3] == [family, way, part]]
            by_part.append(f"{part} {' and '.join(f'{value:.2f}' for value in values)}")
        sentences.append(f"{family}, {way}: tau of relation with CKA and NBS: {'; '.join(by_part)}.")
    return sentences


def _controls(taus: list[list[Any]], sketch: int) -> list[str]:
    means = {
        way: [mean([row[at] for row in taus if row[1] == way]) for at in (6, 7)]
        for way in dict.fromkeys(row[1] for row in taus)
    }
    sentences = [
        f"{way}: the mean similarity is {values[0]:.2f}, with the images of one side shuffled {values[1]:.2f}."
        for way, values in means.items()
    ]
    exact, inflated = means["common"], means["common, sketched"]
    return [
        *sentences,
        f"The same networks and images, sketched to {sketch} sums: {inflated[0]:.2f} where it is {exact[0]:.2f}, and "
        f"{inflated[1]:.2f} shuffled where it is {exact[1]:.2f}.",
        f"Different images sketched to {sketch} sums have {means['own, by class'][0]:.2f} in the order of their "
        f"classes, {means['own'][0]:.2f} in random order, although the order has nothing to do with the networks.",
    ]
