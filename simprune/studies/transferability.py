"""Which pretrained network suits a data set: motifs against the baselines of the field."""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import simprune as sp
from simprune.core.registry import register
from simprune.studies._rank import kendall_interval
from simprune.studies._related import classes_sharing, noisy, permuted_pixels
from simprune.studies._transfer import (
    cross_probe_accuracy,
    h_score,
    knn_accuracy,
    leep,
    log_me,
    n_leep,
    probe_accuracy,
)
from simprune.studies.findings import Figure, Findings, Table
from simprune.studies.frame import Run
from simprune.studies.images import Images
from simprune.studies.layers import layers_of, representations
from simprune.studies.networks import accuracy, answers, train
from simprune.studies.statistics import bootstrap, kendall, mean
from simprune.trace.capture import capture
from simprune.trace.sites import Site

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
SCORES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], float]] = {  # of features, source predictions, labels
    "motif share": lambda features, _, labels: float(sp.measures.get("gbs_motif").describe(features, labels=labels)),
    "modularity": lambda features, _, labels: float(
        sp.measures.get("graph_modularity").describe(features, labels=labels)
    ),
    "LogME": lambda features, _, labels: log_me(features, labels),
    "H-score": lambda features, _, labels: h_score(features, labels),
    "LEEP": lambda _, predictions, labels: leep(predictions, labels),
    "N-LEEP": lambda features, _, labels: n_leep(features, labels),
    "k-NN accuracy": lambda features, _, labels: knn_accuracy(features, labels),
    "linear probe": lambda features, _, labels: cross_probe_accuracy(features, labels),
}
TRUTHS = ("fine-tuned", "probe on test")
BASELINES = ("parameters", "random score")


@register(
    "study",
    "transferability",
    source="arXiv:2111.11165; arXiv:2102.11005; arXiv:2002.12462; arXiv:2011.11200; H-score: Bao et al. 2019",
    quick={"architectures": ("residual", "vgg"), "steps": 150, "tune_steps": 60},
)
def transferability(
    run: Run,
    *,
    architectures: Sequence[str] = ("residual", "vgg", "vit"),
    sources: Sequence[str] = SOURCES,
    steps: int = 400,
    target_images: int = 250,
    tune_steps: int = 100,
    tune_seeds: int = 2,
) -> Findings:
    """Which score, computed from a few labelled images, ranks networks by what they reach on a new data set?

    Protocol: networks are pretrained on tasks of known relation to the target, with the first half of the training
    images: the target's own classes, some of them, none of them, all classes, permuted pixels, noisy images, random
    labels, or not at all. The target has half of the classes, and few images, from the second half. The scores see the
    features before the last layer, and the source's predictions (LEEP), of the target's training images. The truth is
    the accuracy on test images after fine-tuning all weights under a new last layer, and that of a linear probe.
    Kendall's tau between score and truth, over all networks and within every architecture; intervals draw networks.
    Baselines: a random score and the number of parameters. The same scores also rank the layers of every network,
    against a linear probe on that layer. The processor time of every score stands beside that of fine-tuning.

    Cost: one training per source and architecture, and tune_seeds short ones.

    Args:
        architectures: of the networks that the study trains; your own are ranked for the run's images instead.
        sources: what networks are pretrained on.
        steps: of the pretraining.
        target_images: labelled images of the target.
        tune_steps: of a fine-tuning.
        tune_seeds: fine-tunings of every network, whose mean is the truth.
    """
    unknown = [source for source in sources if source not in SOURCES]
    if unknown:
        raise ValueError(f"sources: expected some of {', '.join(SOURCES)}; got {', '.join(unknown)}")
    target, candidates = _candidates(run, architectures, sources, steps, target_images)
    rows, by_layer = [], []
    for candidate in run.progress(candidates, "score and fine-tune"):
        key = [candidate.key, target.digest, tune_steps, tune_seeds]
        work = partial(_judged, run, candidate, target, tune_steps, tune_seeds)
        result = run.step(["network", *key], work)
        rows.append({"name": candidate.name, "architecture": candidate.architecture, **result})
        layers = run.step(["layers", candidate.key, target.digest], partial(_judged_layers, candidate, target))
        by_layer.append({"name": candidate.name, "architecture": candidate.architecture, "layers": layers})
    return _findings(rows, by_layer, run.seed_of("random score"))


@dataclass(frozen=True)
class Candidate:
    """A pretrained network; `make` gives it."""

    name: str
    architecture: str
    make: Callable[[], nn.Module]
    key: str


def _candidates(
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


def _head(model: nn.Module) -> tuple[str, nn.Linear]:
    """The last linear layer with its name; ValueError without one."""
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no linear layer that gives its logits")
    return layers[-1]


def _features(model: nn.Module, images: Tensor) -> np.ndarray:
    site = Site(_head(model)[0], side="input")
    return capture(model, list(images.split(256)), [site])[site.name].double().numpy()


def _judged(run: Run, candidate: Candidate, target: Images, steps: int, seeds: int) -> dict[str, Any]:
    """Scores, truths and processor seconds of a network."""
    model = candidate.make()
    began = time.process_time()
    features, test = _features(model, target.train), _features(model, target.test)
    reading = (time.process_time() - began) * len(features) / (len(features) + len(test))
    labels, test_labels = target.train_labels.numpy(), target.test_labels.numpy()
    predictions = answers(model, target.train).double().softmax(1).numpy()
    scores, seconds = {}, {}
    for name, score in SCORES.items():
        began = time.process_time()
        scores[name] = score(features, predictions, labels)
        seconds[name] = reading + time.process_time() - began
    began = time.process_time()
    reached = [_tuned(model, target, steps, run.seed + seed) for seed in range(seeds)]
    seconds["fine-tuned"] = (time.process_time() - began) / max(seeds, 1)
    truths = {"fine-tuned": mean(reached), "probe on test": probe_accuracy(features, labels, test, test_labels)}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"scores": scores, "seconds": seconds, "truths": truths, "parameters": parameters}


def _tuned(model: nn.Module, target: Images, steps: int, seed: int) -> float:
    """Test accuracy after fine-tuning all weights under a new last layer."""
    model = copy.deepcopy(model)
    name, head = _head(model)
    parent, _, last = name.rpartition(".")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        setattr(model.get_submodule(parent), last, nn.Linear(head.in_features, target.classes))
    train(model, target, seed, steps)
    return accuracy(answers(model, target.test), target.test_labels)


def _judged_layers(candidate: Candidate, target: Images) -> list[list[Any]]:
    """Rows of layer, test accuracy of a linear probe, and the scores that need no predictions."""
    model = candidate.make()
    points = layers_of(model)
    ends = [representations(model, images, points) for images in (target.train, target.test)]
    labels, test_labels = target.train_labels.numpy(), target.test_labels.numpy()
    rows = []
    for point in points:
        features, test = (end[point].double().numpy() for end in ends)
        scores = {name: score(features, features, labels) for name, score in SCORES.items() if name != "LEEP"}
        rows.append([point, probe_accuracy(features, labels, test, test_labels), scores])
    return rows


def _findings(rows: list[dict[str, Any]], by_layer: list[dict[str, Any]], seed: int) -> Findings:
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
