"""Both models run batch by batch, and gates judge their outputs."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from simprune.checks import corruptions
from simprune.checks.intervals import strata_of
from simprune.checks.judging import Case, judge_together
from simprune.checks.padding import targets_of, without_padding
from simprune.checks.sets import Gates, gates_of
from simprune.checks.verdict import Verdict
from simprune.core.batches import call, checked, labels_of, output_mask_of
from simprune.core.names import did_you_mean
from simprune.functional import FunctionalMeasure, Gathered, Outputs
from simprune.functional.tokens import TokenTargets
from simprune.trace.context import evaluation

Watch = Callable[[Any, Tensor, Tensor, Tensor | None], None]  # (batch, outputs of a, outputs of b, labels)

CORRECTIONS = ("holm", "none")
# Dimensions of outputs by the form of a measure, and the outputs in words.
SHAPES = {
    "classes": (2, "class scores (N, C)"),
    "tokens": (3, "token logits (N, T, C)"),
    "multilabel": (2, "logits (N, L)"),
}


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

    Outputs are not stored, except for measures that need those of all batches at once.

    Args:
        model: the original.
        small: the pruned model. Models may be on any devices; they run in evaluation and inference mode, and get their
            own modes back.
        test: batches that can be walked more than once.
        gates, correction: as of `check`.
        seed: of the bootstrap and of corrupted inputs.
        watch: sees every batch with both outputs and the labels.

    Returns:
        The verdict.

    Raises:
        ValueError: for an empty test set, outputs that do not fit a gate's measure, or missing labels of some batches.

    >>> model, data = nn.Linear(4, 3), [torch.randn(500, 4)]
    >>> validate(model, model, data).outcome
    'pass'
    """
    batches = checked(test, "test")
    tally = _run(model, small, batches, gates, seed, correction, watch)
    return tally.verdict(seed, lambda measure: measure.gather(model, small, batches))


def rehearse(
    model: nn.Module, test: Iterable, gates: Gates | None = None, seed: int = 0, correction: str = "holm"
) -> None:
    """Raise the errors of `validate` for gates that do not fit the model and its data, on the first batch alone."""
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
    limits: corruptions.Limits = (0.0, 1.0)
    with evaluation(model, small):
        for number, batch in enumerate(batches):
            labels = labels_of(batch)
            if tally is None:
                tally = _Tally(gates, labels is not None, correction)
                if len(tally.inputs) > 1:
                    limits = corruptions.limits_of(batch)
            for inputs in tally.inputs:
                a, b = (
                    call(network, corruptions.shifted(inputs, batch, network, limits, seed + number))
                    for network in (model, small)
                )
                a, b = (without_padding(outputs, output_mask_of(batch)) for outputs in (a, b))
                tally.update(a, b, labels, inputs, targets_of(batch, model, a))
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
    mask: Tensor | None = None,
) -> Verdict:
    """Verdict of the gates on outputs of a, the original, and b, the pruned model.

    Args:
        logits_a: logits (N, C), `Outputs`, or other outputs that the gates' measures take.
        logits_b: the same of the pruned model.
        labels: (N,) class indices, or other labels that the measures take.
        gates: a list of gates, the name of a check set, or None for the set "default" (without labels, without the
            gates that need them).
        seed: of the bootstrap.
        correction: "holm", so that with the gates' confidence *all* gates that pass do so rightly, and all that fail
            (Holm 1979, once for either side); or "none", every gate on its own.
        mask: (N, T) of outputs (N, T, ...) of tokens, true for tokens and false for padding, which does not count.

    Returns:
        The verdict.

    Raises:
        KeyError: for an unknown check set.
        ValueError: for bad outputs or labels, or no gate.

    >>> logits = torch.eye(3).repeat(100, 1)
    >>> check(logits, logits, torch.arange(3).repeat(100)).outcome
    'pass'
    """
    tally = _Tally(gates, labels is not None, correction)
    for gate, measure in zip(tally.gates, tally.measures, strict=True):
        if measure.form == "models" or gate.inputs != corruptions.CLEAN:
            raise ValueError(f"{gate.label} needs the models, not only their outputs; use validate")
    labels, targets = None if labels is None else torch.as_tensor(labels), None
    if mask is not None:
        logits_a, logits_b = (without_padding(torch.as_tensor(logits), mask) for logits in (logits_a, logits_b))
        targets = TokenTargets(labels, mask)
    tally.update(logits_a, logits_b, labels, targets=targets)
    return tally.verdict(seed)


class _Tally:
    """Collects what the gates need from every batch: rows of their measures, and the labels for strata.

    `inputs`: how inputs are shifted, "clean" first.
    """

    def __init__(self, gates: Gates | None, labelled: bool, correction: str) -> None:
        if correction not in CORRECTIONS:
            raise ValueError(f"correction: unknown {correction!r}; {did_you_mean(str(correction), CORRECTIONS)}")
        self.gates, self.correction, self.labelled = gates_of(gates, labelled), correction, labelled
        left_out = [gate.measure for gate in gates_of() if gates is None and gate not in self.gates]
        self.notes = tuple(f"no labels: {name} was left out" for name in left_out)
        self.measures = [gate.build() for gate in self.gates]
        self.streams = [measure.stream() for measure in self.measures]
        shifts = {gate.inputs for gate in self.gates} - {corruptions.CLEAN}
        self.inputs = [corruptions.CLEAN, *sorted(shifts)]
        self.labels: list[Tensor] = []
        self.count, self.classes, self.batches = 0, 0, 0

    def update(
        self,
        a: Any,
        b: Any,
        labels: Tensor | None,
        inputs: str = corruptions.CLEAN,
        targets: TokenTargets | None = None,
    ) -> None:
        """Add one batch's outputs of both models on these inputs; `targets`: of tokens, in place of labels."""
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
                stream.update((a, b), labels if targets is None or measure.form != "tokens" else targets)

    def _count(self, a: Any, labels: Tensor | None) -> None:
        self.batches += 1
        if (labels is not None) != self.labelled:
            labelled = self.batches - 1 if self.labelled else 1
            raise ValueError(f"{labelled} of {self.batches} test batches have labels; give labels to all or none")
        shape = tuple(getattr(a, "shape", None) or torch.as_tensor(a).shape)
        self.count += shape[0] if shape else 0
        self.classes = shape[1] if len(shape) == 2 else 0
        if labels is not None and labels.ndim == 1 and not labels.is_floating_point():
            self.labels.append(labels.detach().cpu().to(torch.int64, copy=True))

    def _fits(self, measure: FunctionalMeasure, a: Any) -> None:
        dimensions, words = SHAPES.get(measure.form, (None, ""))
        if isinstance(a, Tensor) and dimensions is not None and a.ndim != dimensions:
            raise ValueError(
                f"{measure.id} needs {words}; the models' outputs have shape {tuple(a.shape)}: choose a "
                "check set for them (default, embedding, language_model)"
            )

    def verdict(self, seed: int, gather: Callable[[FunctionalMeasure], Gathered] | None = None) -> Verdict:
        """The verdict on all batches so far; `gather` reads rows inside of the models, for measures of that form."""
        labels = torch.cat(self.labels).numpy() if self.labels else np.zeros(0, np.int64)
        strata, cases = strata_of(labels, self.count, self.classes), []
        for gate, measure, stream in zip(self.gates, self.measures, self.streams, strict=True):
            if gather is not None and measure.form == "models":
                gathered = gather(measure)
                cases.append(Case.of(gate, gathered, np.zeros(len(gathered.rows), dtype=np.int64), seed))
            else:
                cases.append(Case.of(gate, Gathered(stream.rows()), strata, seed))
        return Verdict(tuple(judge_together(cases, self.correction)), self.count, self.notes, seed)
