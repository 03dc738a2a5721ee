"""Networks that are pretrained on tasks of known relation to a target."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from simprune.studies.frame import Run
from simprune.studies.images import Images
from simprune.studies.tools.related import classes_sharing, noisy, permuted_pixels

SOURCES = (
    "same classes",
    "some classes",
    "other classes",
    "all classes",
    "permuted",
    "noisy",
    "random labels",
    "untrained",
)


@dataclass(frozen=True)
class Candidate:
    """A pretrained network; `make` gives it."""

    name: str
    architecture: str
    make: Callable[[], nn.Module]
    key: str


def candidates_for(
    run: Run, architectures: Sequence[str], sources: Sequence[str], steps: int, count: int
) -> tuple[Images, list[Candidate]]:
    """The target, and the networks to rank for it."""
    images = run.images
    if run.models:
        subjects = run.subjects((), 0)
        if len(subjects) < 2:
            raise ValueError("transferability ranks networks: name at least two models")
        target = _first_images(images, count)
        return target, [Candidate(s.name, s.architecture, partial(copy.deepcopy, s.model), s.key) for s in subjects]
    if images.classes < 4:
        raise ValueError(f"transferability needs images of at least 4 classes; got {images.classes}")
    first, second = _halves(images, run.generator("halves"))
    size = images.classes // 2
    pools = {name: classes_sharing(images.classes, size, shared, run.seed) for name, shared in _shared(size).items()}
    wanted = pools["same classes"][0]
    target = _first_images(second.only(wanted), count)
    candidates = []
    for architecture in architectures:
        for source in sources:
            task = first.only(pools[source][1]) if source in pools else _changed(first, source, run.seed_of(source))
            own = 0 if source == "untrained" else steps
            make = partial(run.network, architecture, images=task, steps=own)
            key = f"{architecture} {source} {own}"
            candidates.append(Candidate(f"{architecture}, {source}", architecture, make, key))
    return target, candidates


def _halves(images: Images, generator: torch.Generator) -> list[Images]:
    """The same images with either half of those to train on, drawn at random."""
    order = torch.randperm(len(images.train), generator=generator)
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    return [replace(images, train=images.train[rows], train_labels=images.train_labels[rows]) for rows in halves]


def _shared(size: int) -> dict[str, int]:
    return {"same classes": size, "some classes": size // 2, "other classes": 0}


def _first_images(images: Images, count: int) -> Images:
    return replace(images, train=images.train[:count], train_labels=images.train_labels[:count])


def _changed(images: Images, source: str, seed: int) -> Images:
    """All classes, with what the source names done to the images or labels."""
    if source == "permuted":
        return replace(images, train=permuted_pixels(images.train, 1.0, seed))
    if source == "noisy":
        return replace(images, train=noisy(images.train, 2.0, seed))
    if source == "random labels":
        order = torch.randperm(len(images.train), generator=torch.Generator().manual_seed(seed))
        return replace(images, train_labels=images.train_labels[order])
    return images
