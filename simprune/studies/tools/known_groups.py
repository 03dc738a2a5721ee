"""Tests of measures by networks that are known to differ: does a measure tell apart groups that were trained otherwise?

After Klabunde et al., ReSi (arXiv:2408.00531): labels at random, a shortcut in the images, shifted images, and layers
of one network, where nearer layers should be more alike.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

import simprune as sp
from simprune.studies.frame import Images, Run
from simprune.studies.layers import balanced, layers_of, representations
from simprune.studies.statistics import mean

TESTS = ("labels at random", "shortcut", "shifted images", "layers")
CHANCE = 0.5  # of every test but that of layers, whose chance is 1/3: the outer pair of three is the least alike


def random_labels(images: Images, share: float, generator: torch.Generator) -> Images:
    """The images with a share of the training labels drawn at random."""
    labels, count = images.train_labels.clone(), round(share * len(images.train))
    rows = torch.randperm(len(labels), generator=generator)[:count]
    labels[rows] = torch.randint(images.classes, (count,), generator=generator)
    return replace(images, train_labels=labels)


def marked(pixels: Tensor, marks: Tensor) -> Tensor:
    """Images (N, C, H, W) in which one pixel, whose place is a mark from 0 to H W - 1, has the largest value of all."""
    changed = pixels.clone().flatten(2)
    changed[:, :, : int(marks.max()) + 1] = pixels.min()
    changed[torch.arange(len(pixels)), :, marks] = pixels.max()
    return changed.view_as(pixels)


def with_shortcut(images: Images, share: float, generator: torch.Generator) -> Images:
    """The images with a mark that says the label for a share of the training images, and anything for the others."""
    marks = torch.randint(images.classes, (len(images.train),), generator=generator)
    told = torch.rand(len(marks), generator=generator) < share
    marks = torch.where(told, images.train_labels, marks)
    others = torch.randint(images.classes, (len(images.test),), generator=generator)
    return replace(images, train=marked(images.train, marks), test=marked(images.test, others))


def conformity(distances: Mapping[tuple[int, int], float], groups: Sequence[Any]) -> float:
    """How often two networks of one group are more alike than one of them and one of another group.

    Args:
        distances: of networks i < j; large is different.
        groups: of every network.

    >>> conformity({(0, 1): 0.1, (0, 2): 0.5, (1, 2): 0.4}, ["a", "a", "b"])
    1.0
    """
    right, asked = 0.0, 0
    for i, j in combinations(range(len(groups)), 2):
        if groups[i] != groups[j]:
            continue
        for one in (i, j):
            for other in range(len(groups)):
                if groups[other] != groups[one]:
                    between = distances[min(one, other), max(one, other)]
                    right += 1.0 if distances[i, j] < between else 0.5 if distances[i, j] == between else 0.0
                    asked += 1
    return right / asked


def monotonicity(distances: Mapping[tuple[int, int], float], layers: int) -> float:
    """How often, of three layers, the first and the last are the least alike; 1/3 by chance.

    >>> monotonicity({(0, 1): 0.1, (1, 2): 0.1, (0, 2): 0.3}, 3)
    1.0
    """
    triples = list(combinations(range(layers), 3))
    right = sum(distances[i, k] > max(distances[i, j], distances[j, k]) for i, j, k in triples)
    return right / len(triples)


def rates(
    run: Run, architecture: str, seeds: int, inputs: int, measures: Mapping[str, Any]
) -> dict[str, dict[str, float | None]]:
    """For every test the rate at which every measure passes.

    Args:
        run: of the study.
        architecture: of the networks.
        seeds: networks of every group, at least 2.
        inputs: test images at which networks are compared.
        measures: by name.
    """
    made: dict[str, dict[str, float | None]] = {}
    for test in TESTS:
        key = ["known groups", test, architecture, seeds, inputs, sorted(measures)]
        made[test] = run.step(key, lambda test=test: _rates(run, test, architecture, seeds, inputs, measures))
    return made


def _rates(
    run: Run, test: str, architecture: str, seeds: int, inputs: int, measures: Mapping[str, Any]
) -> dict[str, float | None]:
    if test == "layers":
        return _of_layers(run, architecture, seeds, inputs, measures)
    rows, groups, labels = [], [], torch.tensor([])
    for group, make, images in _groups(run, test, architecture):
        shown, labels = balanced(images, inputs, run.seed_of("images"))
        for seed in range(seeds):
            model = make(seed)
            (layer,) = layers_of(model)[-1:]
            rows.append(representations(model, shown, [layer])[layer])
            groups.append(group)
    distances = {name: _distances(measure, rows, labels) for name, measure in measures.items()}
    return {name: None if apart is None else conformity(apart, groups) for name, apart in distances.items()}


def _groups(run: Run, test: str, architecture: str) -> list[tuple[Any, Callable[[int], nn.Module], Images]]:
    """Groups of a test: what tells them apart, how their networks are made, and the images that they are shown."""
    made: list[tuple[Any, Callable[[int], nn.Module], Images]] = []
    for level in (0.0, 0.5, 1.0) if test == "labels at random" else (0.0, 1.0) if test == "shortcut" else (0.0, 0.25):
        if test == "labels at random":
            images = random_labels(run.images, level, run.generator(test, level))
            made.append((level, lambda seed, images=images: run.network(architecture, seed, images=images), run.images))
        elif test == "shortcut":
            images = with_shortcut(run.images, level, run.generator(test, level))
            shown = with_shortcut(run.images, 0.0, run.generator(test, "shown"))
            made.append((level, lambda seed, images=images: run.network(architecture, seed, images=images), shown))
        else:
            moved = partial(run.network, architecture, augment=level) if level else partial(run.network, architecture)
            made.append((level, moved, run.images))
    return made


def _of_layers(
    run: Run, architecture: str, seeds: int, inputs: int, measures: Mapping[str, Any]
) -> dict[str, float | None]:
    shown, labels = balanced(run.images, inputs, run.seed_of("images"))
    passed: dict[str, list[float | None]] = {name: [] for name in measures}
    for seed in range(seeds):
        model = run.network(architecture, seed)
        rows = [*representations(model, shown, layers_of(model)).values()]
        for name, measure in measures.items():
            apart = _distances(measure, rows, labels)
            passed[name].append(None if apart is None else monotonicity(apart, len(rows)))
    return {name: None if None in values else mean(values) for name, values in passed.items()}


def _distances(measure: Any, rows: Sequence[Tensor], labels: Tensor) -> dict[tuple[int, int], float] | None:
    """How far representations of the same images are apart; None for a measure that does not compare all of them."""
    sign = -1 if measure.larger_is_more_similar else 1
    prepared = measure.prepare_all(
        {str(i): row for i, row in enumerate(rows)}, labels if measure.needs_labels else None
    )
    distances = {}
    for i, j in combinations(range(len(rows)), 2):
        try:
            distances[i, j] = sign * float(measure.compare(prepared[i], prepared[j]))
        except ValueError:  # layers of unequal widths, to a measure that maps unit to unit
            return None
    return distances if all(math.isfinite(value) for value in distances.values()) else None


def measures_by_name(names: Sequence[str], options: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Measures of these names, with options where they need some."""
    return {name: sp.measures.get(name, **options.get(name, {})) for name in names}
