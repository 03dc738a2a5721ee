"""Both models run batch by batch, and gates judge their outputs."""

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from simprune.checks import corruptions
from simprune.checks.intervals import strata_of
from simprune.checks.judging import Case, judge_together
from simprune.checks.padding import targets_of, without_padding
from simprune.checks.sets import Gates, fitting, gates_of, labelled
from simprune.checks.tokens import gates_of_tokens, lends_labels
from simprune.checks.verdict import Gate, Verdict
from simprune.core import processes
from simprune.core.batches import call_all, checked, main_name, output_mask_of
from simprune.core.example import ROWS
from simprune.core.labels import Labels, by_output, check_labels, labels_by_output, labels_of, tensor_of
from simprune.core.names import did_you_mean
from simprune.core.pieces import pieces
from simprune.functional import FORMS, FunctionalMeasure, Gathered, Outputs
from simprune.functional.tokens import TokenTargets
from simprune.trace.context import evaluation

Watch = Callable[[Any, Tensor, Tensor, Tensor | None], None]  # (batch, outputs of a, outputs of b, labels)

CORRECTIONS = ("holm", "none")
OUTPUTS = 2**26  # bytes of one model's outputs that are looked at together: measures make several copies of them
# Numbers of dimensions of outputs by the form of a measure.
SHAPES = {"classes": (2,), "tokens": (3,), "multilabel": (2,), "maps": (3, 4, 5)}


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

    Outputs are not stored, except for measures that need those of all batches at once. Several processes share out the
    batches; a verdict that is watched is computed by every process whole.

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


def default_gates(model: nn.Module, test: Iterable) -> list[Gate]:
    """Gates that fit what a model gives for the first test batch; the set "language_model" for language models.

    See `simprune.checks.sets.fitting`.
    """
    with evaluation(model):
        for batch in checked(test, "test"):
            return _fitting(model, batch, call_all(model, batch))
    raise ValueError("the test set is empty; pass at least one batch")


def needs_no_labels(model: nn.Module, test: Iterable) -> bool:
    """Whether test batches have no labels because a language model's are its tokens, as the first batch shows."""
    with evaluation(model):
        return any(lends_labels(model, batch, call_all(model, batch)) for batch in islice(checked(test, "test"), 1))


def _fitting(model: nn.Module, batch: Any, outputs: Mapping[str, Tensor]) -> list[Gate]:
    return gates_of_tokens(model, batch, outputs) or fitting(outputs, _labels_of(batch))


def _labels_of(batch: Any) -> Labels | None:
    """Labels of a batch: by output where some have their own, else those of the main output."""
    named = labels_by_output(batch)
    return named if any(labels is not None for labels in named.values()) else labels_of(batch)


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
    for gate in () if gates is None else gates_of(gates):
        gate.build().ready()
    tally: _Tally | None = None
    limits: corruptions.Limits = (0.0, 1.0)
    size = number = 0
    chosen: Gates | None = None

    def run(tally: _Tally, whole: Any, number: int) -> None:
        """Run both models on one batch."""
        for batch in [whole] if len(tally.inputs) > 1 else pieces(whole, size):  # corruptions go batch by batch
            labels, mask = _labels_of(batch), output_mask_of(batch)
            for inputs in tally.inputs:
                a, b = (
                    call_all(network, corruptions.shifted(inputs, batch, network, limits, seed + number))
                    for network in (model, small)
                )
                a, b = ({name: without_padding(value, mask) for name, value in some.items()} for some in (a, b))
                tally.update(a, b, labels, inputs, lambda output, batch=batch: targets_of(batch, model, output))
                if watch is not None and inputs == corruptions.CLEAN:
                    main = main_name(a)
                    watch(batch, a[main], b[main], labels_of(batch))

    with evaluation(model, small):
        for some in processes.rounds(batches):
            if tally is None:
                few = next(pieces(some[0], ROWS))
                outputs, labels = call_all(model, few), _labels_of(few)
                check_labels(few, outputs)
                chosen = _fitting(model, few, outputs) if gates is None else gates
                tally = _Tally(gates, labels is not None, correction, chosen)
                if len(tally.inputs) > 1:
                    limits = corruptions.limits_of(some[0])
                size = max(1, OUTPUTS * len(next(iter(outputs.values()))) // sum(map(_bytes, outputs.values())))
            mail = processes.Mail(lambda _, other, tally=tally: tally.merge(other))
            for index, whole in enumerate(some):
                if watch is not None or processes.count() == 1:
                    run(tally, whole, number + index)
                elif index == processes.rank():
                    own = _Tally(gates, tally.labelled, correction, chosen)
                    run(own, whole, number + index)
                    mail.send("batch", own)
            mail.deliver()
            number += len(some)
    if tally is None:
        raise ValueError("the test set is empty; pass at least one batch")
    return tally


def _bytes(output: Tensor) -> int:
    return max(1, output.numel() * output.element_size())


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
        logits_a: logits (N, C), `Outputs`, or other outputs that the gates' measures take; several ones by name.
        logits_b: the same of the pruned model.
        labels: (N,) class indices, or other labels that the measures take; of several outputs also by name.
        gates: a list of gates, the name of a check set, or None for gates that fit the outputs: for class scores the
            set "default" (without labels, without the gates that need them).
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
    outputs_a, outputs_b = (dict(x) if isinstance(x, Mapping) else {"output": x} for x in (logits_a, logits_b))
    targets: TokenTargets | None = None
    labels = by_output(labels) or (None if labels is None else tensor_of(labels))
    shaped = all(isinstance(value, Tensor) for value in outputs_a.values())
    chosen = fitting(outputs_a, labels) if shaped and gates is None else gates
    tally = _Tally(gates, labels is not None, correction, chosen)
    for gate, measure in zip(tally.gates, tally.measures, strict=True):
        if measure.form == "models" or gate.inputs != corruptions.CLEAN:
            raise ValueError(f"{gate.label} needs the models, not only their outputs; use validate")
    if mask is not None:
        outputs_a, outputs_b = (
            {name: without_padding(torch.as_tensor(value), mask) for name, value in outputs.items()}
            for outputs in (outputs_a, outputs_b)
        )
        targets = TokenTargets(_main_labels(labels, outputs_a), mask)
    tally.update(outputs_a, outputs_b, labels, targets=lambda _: targets)
    return tally.verdict(seed)


def _main_labels(labels: Labels | None, outputs: Mapping[str, Any]) -> Tensor | None:
    return labels.get(main_name(outputs)) if isinstance(labels, Mapping) else labels


class _Tally:
    """Collects what the gates need from every batch: rows of their measures, and the labels for strata.

    `inputs`: how inputs are shifted, "clean" first.
    """

    def __init__(self, gates: Gates | None, labelled: bool, correction: str, chosen: Gates | None) -> None:
        if correction not in CORRECTIONS:
            raise ValueError(f"correction: unknown {correction!r}; {did_you_mean(str(correction), CORRECTIONS)}")
        self.gates, self.correction, self.labelled = gates_of(chosen, labelled), correction, labelled
        asked = {gate.measure for gate in self.gates}
        by_default = gates is None and not labelled and "disagreement" in asked
        self.notes = [f"no labels: {gate.measure} was left out" for gate in gates_of() if gate.measure not in asked]
        self.notes = self.notes if by_default else []
        self.names: list[str] = []  # of the outputs
        self.measures = [gate.build() for gate in self.gates]
        self.streams = [measure.stream() for measure in self.measures]
        shifts = {gate.inputs for gate in self.gates} - {corruptions.CLEAN}
        self.inputs = [corruptions.CLEAN, *sorted(shifts)]
        self.labels: list[Tensor] = []
        self.count, self.classes, self.batches = 0, 0, 0

    def update(
        self,
        outputs_a: Mapping[str, Any],
        outputs_b: Mapping[str, Any],
        labels: Labels | None,
        inputs: str = corruptions.CLEAN,
        targets: Callable[[Tensor], TokenTargets | None] = lambda _: None,
    ) -> None:
        """Add one batch's outputs of both models on these inputs, by name.

        `targets`: tells for an output what stands in place of labels where it is of tokens.
        """
        self._same_outputs(outputs_a, outputs_b)
        if inputs == corruptions.CLEAN:
            self._count(outputs_a[main_name(outputs_a)], _main_labels(labels, outputs_a), labels is not None)
        class_scores: dict[str, tuple[Outputs, Outputs]] = {}  # in float64, softmax and all, once for all gates
        for gate, measure, stream in zip(self.gates, self.measures, self.streams, strict=True):
            if gate.inputs != inputs or measure.form == "models":
                continue
            name = self._output_of(gate)
            a, b = outputs_a[name], outputs_b[name]
            self._fits(measure, a, gate)
            own = labels.get(name) if isinstance(labels, Mapping) else labels
            if len(outputs_a) > 1 and not measure.needs_labels and name not in labelled(outputs_a, labels):
                own = None  # they are another output's
            if measure.form == "classes":
                if name not in class_scores:
                    class_scores[name] = Outputs.of(a, "logits_a"), Outputs.of(b, "logits_b")
                stream.update(class_scores[name], own)
            else:
                tokens = targets(a) if measure.form == "tokens" else None
                stream.update((a, b), own if tokens is None else tokens)

    def merge(self, other: "_Tally") -> None:
        """Add the batches that another one has seen, of the same gates."""
        names = dict.fromkeys(other.names)
        self._same_outputs(names, names)
        for stream, others in zip(self.streams, other.streams, strict=True):
            stream.merge(others)
        self.labels += other.labels
        self.count, self.batches, self.classes = self.count + other.count, self.batches + other.batches, other.classes

    def _same_outputs(self, a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
        """ValueError where outputs differ in number or name; the first time, a note on outputs without a gate."""
        if a.keys() != b.keys() or (self.names and [*a] != self.names):
            names = self.names or [*a]
            raise ValueError(f"both models must give the same outputs for all batches; got {names} and {[*b]}")
        if not self.names:
            self.names = [*a]
            seen = {self._output_of(gate) for gate in self.gates if gate.build().form != "models"}
            unseen = [name for name in a if name not in seen]
            if unseen:
                said = f"no gate checks the output{'s' * (len(unseen) > 1)} {', '.join(unseen)}"
                self.notes.append(f"{said}; a gate checks what its `output` names, by default {main_name(a)}")

    def _output_of(self, gate: Gate) -> str:
        """The name of the output that a gate checks; ValueError for one that the models do not give."""
        if gate.output is None:
            return main_name(dict.fromkeys(self.names))
        if isinstance(gate.output, int) and str(gate.output) not in self.names:
            if not 0 <= gate.output < len(self.names):
                raise ValueError(f"{gate.label}: the models give {len(self.names)} outputs: {', '.join(self.names)}")
            return self.names[gate.output]
        if str(gate.output) not in self.names:
            raise ValueError(f"{gate.label}: no output {gate.output!r}; {did_you_mean(str(gate.output), self.names)}")
        return str(gate.output)

    def _count(self, a: Any, labels: Tensor | None, labelled: bool) -> None:
        self.batches += 1
        if labelled != self.labelled:
            some = self.batches - 1 if self.labelled else 1
            raise ValueError(f"{some} of {self.batches} test batches have labels; give labels to all or none")
        shape = tuple(getattr(a, "shape", None) or torch.as_tensor(a).shape)
        self.count += shape[0] if shape else 0
        self.classes = shape[1] if len(shape) == 2 else 0
        if labels is not None and labels.ndim == 1 and not labels.is_floating_point():
            self.labels.append(labels.detach().cpu().to(torch.int64, copy=True))

    def _fits(self, measure: FunctionalMeasure, a: Any, gate: Gate) -> None:
        if isinstance(a, Tensor) and a.ndim not in SHAPES.get(measure.form, (a.ndim,)):
            raise ValueError(
                f"{gate.label} needs {FORMS[measure.form]}; the models' outputs have shape {tuple(a.shape)}: choose a "
                "check set for them (default, embedding, segmentation, language_model)"
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
        return Verdict(tuple(judge_together(cases, self.correction)), self.count, tuple(self.notes), seed)
