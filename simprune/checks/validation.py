"""Run both models, batch by batch, and judge what they give."""

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from simprune.checks import corruptions
from simprune.checks.intervals import strata_of
from simprune.checks.judging import Case, judge_together
from simprune.checks.sets import Gates, gates_of
from simprune.checks.verdict import Verdict
from simprune.core.batches import call, checked, labels_of
from simprune.core.names import did_you_mean
from simprune.functional import FunctionalMeasure, Gathered, Outputs
from simprune.trace.context import evaluation

Watch = Callable[[Any, Tensor, Tensor, Tensor | None], None]  # (batch, outputs of a, outputs of b, labels)

CORRECTIONS = ("holm", "none")
SHAPES = {"classes": "class scores (N, C)", "tokens": "token logits (N, T, C)", "multilabel": "logits (N, L)"}


def validate(
    model: nn.Module,
    small: nn.Module,
    test: Iterable,
    gates: Gates | None = None,
    seed: int = 0,
    correction: str = "holm",
    watch: Watch | None = None,
) -> Verdict:
    """Verdict on whether `small` may replace `model`, from both models' outputs on the batches of `test`.

    Batch by batch: outputs are not kept, except for measures that need all at once. `watch` sees every batch and both
    outputs. Models may be on any devices; they run in evaluation and inference mode and get their modes back.
    `gates`, `correction`: as of `check`. ValueError for an empty test set, outputs that do not fit a gate's measure,
    or missing labels of some batches.
    """
    batches = checked(test, "test")
    tally = _run(model, small, batches, gates, seed, correction, watch)
    gathered = {i: measure.gather(model, small, batches) for i, measure in tally.of_models.items()}
    return tally.verdict(seed, gathered)


def rehearse(
    model: nn.Module, test: Iterable, gates: Gates | None = None, seed: int = 0, correction: str = "holm"
) -> None:
    """Raise what `validate` would for gates that do not fit the model and its data, from the first batch alone."""
    _run(model, model, islice(checked(test, "test"), 1), gates, seed, correction)


def _run(
    model: nn.Module,
    small: nn.Module,
    batches: Iterable,
    gates: Gates | None,
    seed: int,
    correction: str,
    watch: Watch | None = None,
) -> "_Tally":
    tally: _Tally | None = None
    limits: corruptions.Limits | None = None
    with evaluation(model, small):
        for number, batch in enumerate(batches):
            labels = labels_of(batch)
            tally = tally or _Tally(gates, labels is not None, correction)
            for inputs in tally.inputs:
                if inputs != corruptions.CLEAN:
                    limits = limits or corruptions.limits_of(batch)
                seen = [
                    batch if limits is None else corruptions.shifted(inputs, batch, network, limits, seed + number)
                    for network in (model, small)
                ]
                a, b = (call(network, each).cpu() for network, each in zip((model, small), seen, strict=True))
                tally.update(a, b, labels, inputs)
                if watch is not None and inputs == corruptions.CLEAN:
                    watch(batch, a, b, labels)
    if tally is None:
        raise ValueError("the test set is empty; pass at least one batch")
    return tally


def check(
    logits_a: Any,
    logits_b: Any,
    labels: Any = None,
    gates: Gates | None = None,
    seed: int = 0,
    correction: str = "holm",
) -> Verdict:
    """Verdict of the gates on outputs of a, the original, and b, the pruned model.

    Logits (N, C), `Outputs`, or what the gates' measures take. `gates`: a list of gates, the name of a check set, or
    None for the set "default" (without labels, without the gates that need them). `correction`: "holm", so that with
    the gates' confidence *all* gates that pass do so rightly, and all that fail (Holm 1979, once for either side); or
    "none", every gate on its own. KeyError for an unknown check set; ValueError for bad outputs or labels, or no gate.

    >>> logits = torch.eye(3).repeat(100, 1)
    >>> check(logits, logits, torch.arange(3).repeat(100)).outcome
    'pass'
    """
    tally = _Tally(gates, labels is not None, correction)
    for i, gate in enumerate(tally.gates):
        if i in tally.of_models or gate.inputs != corruptions.CLEAN:
            raise ValueError(f"{gate.label} needs the models, not only their outputs; use validate")
    tally.update(logits_a, logits_b, None if labels is None else torch.as_tensor(labels))
    return tally.verdict(seed)


class _Tally:
    """What the gates need of every batch: rows of their measures, and the labels for strata."""

    def __init__(self, gates: Gates | None, labelled: bool, correction: str) -> None:
        if correction not in CORRECTIONS:
            raise ValueError(f"correction: unknown {correction!r}; {did_you_mean(str(correction), CORRECTIONS)}")
        self.notes: tuple[str, ...] = ()
        self.gates, self.correction, self.labelled = gates_of(gates, labelled), correction, labelled
        if gates is None:
            left_out = [gate.measure for gate in gates_of() if gate not in self.gates]
            self.notes = tuple(f"no labels: {name} was left out" for name in left_out)
        self.measures = [gate.build() for gate in self.gates]
        self.streams = [measure.stream() for measure in self.measures]
        self.of_models = {i: measure for i, measure in enumerate(self.measures) if measure.form == "models"}
        shifts = {gate.inputs for gate in self.gates} - {corruptions.CLEAN}
        self.inputs = [corruptions.CLEAN, *sorted(shifts)]
        self.labels: list[Tensor] = []
        self.count, self.classes, self.batches = 0, 0, 0

    def update(self, a: Any, b: Any, labels: Tensor | None, inputs: str = corruptions.CLEAN) -> None:
        """Add one batch's outputs of both models on these inputs."""
        if inputs == corruptions.CLEAN:
            self._count(a, labels)
        class_scores: tuple[Outputs, Outputs] | None = None  # in float64, softmax and all, once for all gates
        for gate, measure, stream in zip(self.gates, self.measures, self.streams, strict=True):
            if gate.inputs != inputs or measure.form == "models":
                continue
            self._fits(measure, a)
            if measure.form == "classes":
                class_scores = class_scores or (Outputs.of(a, "logits_a"), Outputs.of(b, "logits_b"))
                stream.update(class_scores, labels)
            else:
                stream.update((a, b), labels)

    def _count(self, a: Any, labels: Tensor | None) -> None:
        self.batches += 1
        if (labels is not None) != self.labelled:
            found = self.batches - 1 if self.labelled else 1
            raise ValueError(f"{found} of {self.batches} test batches have labels; give labels to all or none")
        shape = tuple(getattr(a, "shape", None) or torch.as_tensor(a).shape)
        self.count += shape[0] if shape else 0
        self.classes = shape[1] if len(shape) == 2 else 0
        if labels is not None and labels.ndim == 1 and not labels.is_floating_point():
            self.labels.append(labels.detach().cpu().to(torch.int64, copy=True))

    def _fits(self, measure: FunctionalMeasure, a: Any) -> None:
        dimensions = {"classes": 2, "tokens": 3, "multilabel": 2}.get(measure.form)
        if isinstance(a, Tensor) and dimensions is not None and a.ndim != dimensions:
            raise ValueError(
                f"{measure.id} needs {SHAPES[measure.form]}; the models' outputs have shape {tuple(a.shape)}: choose a "
                "check set for them (default, embedding, language_model)"
            )

    def _strata(self) -> np.ndarray:
        labels = torch.cat(self.labels) if self.labels else None
        if labels is None or len(labels) != self.count or not self.classes:
            return np.zeros(self.count, dtype=np.int64)
        return strata_of(labels, (self.count, self.classes))

    def verdict(self, seed: int, gathered: Mapping[int, Gathered] | None = None) -> Verdict:
        """From the batches so far, and what measures that read inside of models have gathered."""
        strata, cases = self._strata(), []
        for i, (gate, measure) in enumerate(zip(self.gates, self.measures, strict=True)):
            if gathered and i in gathered:
                rows, columns = gathered[i].rows, gathered[i].columns
                cases.append(Case.of(gate, measure, rows, np.zeros(len(rows), dtype=np.int64), seed, columns))
            else:
                cases.append(Case.of(gate, measure, self.streams[i].rows(), strata, seed))
        return Verdict(tuple(judge_together(cases, self.correction)), self.count, self.notes, seed)
