"""Which pretrained network suits a data set: motifs against the baselines of the field."""

import copy
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from simprune.core.registry import register
from simprune.studies.findings import Findings
from simprune.studies.frame import Run
from simprune.studies.images import Images
from simprune.studies.layers import layers_of, representations
from simprune.studies.networks import accuracy, answers, train
from simprune.studies.statistics import mean
from simprune.studies.summaries.transferability import findings_of
from simprune.studies.tools.pretrained import SOURCES, Candidate, candidates_for
from simprune.studies.tools.transfer import SCORES, probe_accuracy
from simprune.trace.capture import capture
from simprune.trace.sites import Site


@register(
    "study",
    "transferability",
    source="arXiv:2111.11165; arXiv:2102.11005; arXiv:2002.12462; arXiv:2011.11200; H-score: Bao et al. 2019",
    least={"steps": 1, "target_images": 1, "tune_steps": 1, "tune_seeds": 1},
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

    Cost: one training per source and architecture, and tune_seeds short ones; the quick version takes a minute of one
    core.

    Args:
        architectures: of the networks that the study trains; your own are ranked for the run's images instead.
        sources: what networks are pretrained on.
        steps: of the pretraining.
        target_images: labelled images of the target.
        tune_steps: of a fine-tuning.
        tune_seeds: fine-tunings of every network, whose mean is the truth.
    """
    unknown = [source for source in sources if source not in SOURCES]
    if unknown or not sources:
        raise ValueError(f"sources: expected some of {', '.join(SOURCES)}; got {', '.join(unknown) or 'none'}")
    target, candidates = candidates_for(run, architectures, sources, steps, target_images)
    rows, by_layer = [], []
    for candidate in run.progress(candidates, "score and fine-tune"):
        key = [candidate.key, target.digest, tune_steps, tune_seeds]
        work = partial(_judged, run, candidate, target, tune_steps, tune_seeds)
        result = run.step(["network", *key], work)
        rows.append({"name": candidate.name, "architecture": candidate.architecture, **result})
        layers = run.step(["layers", candidate.key, target.digest], partial(_judged_layers, candidate, target))
        by_layer.append({"name": candidate.name, "architecture": candidate.architecture, "layers": layers})
    return findings_of(rows, by_layer, run.seed_of("random score"))


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
