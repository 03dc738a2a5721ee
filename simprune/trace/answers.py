"""The outputs of a network on a set of inputs, and how far the outputs of two networks are apart."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core import processes
from simprune.core.batches import call_all, main_name, output_mask_of
from simprune.core.divergence import divergences
from simprune.core.labels import labels_of
from simprune.core.spilled import Collecting, Stored, chunks
from simprune.core.spread import Spread
from simprune.trace.context import evaluation
from simprune.trace.outputs import Rows, as_rows, counted, rows_of_outputs, weighted


@dataclass(frozen=True)
class Answers:
    """A model's outputs on a test set, on the CPU.

    Args:
        outputs: (rows, features) of every output, by name: one row per position of an input, without padding. Large
            ones, as the logits of many tokens, are on disk.
        counts: how many rows every input has, by output.
        labels: of every row of the main output, where all batches have labels that fit it; else None.
        classes: whether the rows of the main output are class scores: one row per input, or labels for every position.
        labelled: whether all batches have labels of whatever shape.
        weights: of outputs in the damage against this model, by name; those that it does not name have the weight 1.
    """

    outputs: Mapping[str, Stored]
    counts: Mapping[str, Tensor] = field(default_factory=dict)
    labels: Tensor | None = None
    classes: bool = False
    labelled: bool = False
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def logits(self) -> Stored:
        """(rows, features) of the main output."""
        return self.outputs[main_name(self.outputs)]


def answer(model: nn.Module, test: Iterable, weights: Mapping[str, float] | None = None) -> Answers:
    """Outputs and labels of a model on a whole test set, in evaluation mode.

    Several processes share out the batches; all of them know all outputs.

    Args:
        model: the network.
        test: batches, perhaps with labels.
        weights: of outputs in the damage of other models against this one (see `Answers`).

    Raises:
        ValueError: for a set without batches, and where batches have different outputs.

    >>> answer(nn.Linear(4, 3), [(torch.zeros(5, 4), torch.zeros(5))]).logits.shape
    torch.Size([5, 3])
    """
    collecting: dict[str, Collecting] = {}
    counts: dict[str, list[Tensor]] = {}
    labels: list[Tensor] = []
    rows: dict[str, Rows] = {}
    batches, classes, labelled = 0, True, True

    def add(_: str, answers: Mapping[str, tuple[Tensor, Tensor]], label: Tensor | None, of_classes: bool) -> None:
        nonlocal batches, classes
        for name, (entries, lengths) in answers.items():
            collecting.setdefault(name, Collecting()).add(entries)
            counts.setdefault(name, []).append(lengths)
        labels.extend([] if label is None else [label])
        classes = classes and of_classes
        batches += 1

    mail = processes.Mail(add)
    with evaluation(model):
        for some in processes.rounds(test):
            rows = rows or rows_of_outputs(model, some[0])
            labelled = labelled and all(labels_of(batch) is not None for batch in some)
            for batch in some[processes.rank() :][:1]:
                mail.send("batch", *_answer(model, batch, rows))
            mail.deliver()
    if not batches:
        raise ValueError("test has no batches; give at least one")
    return Answers(
        {name: entries.result() for name, entries in collecting.items()},
        {name: torch.cat(values) for name, values in counts.items()},
        torch.cat(labels) if len(labels) == batches else None,
        classes,
        labelled,
        dict(weights or {}),
    )


def _answer(
    model: nn.Module, batch: Any, rows: Mapping[str, Rows]
) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor | None, bool]:
    """Of one batch: the rows of every output with how many every input has, labels, and whether it has class scores."""
    outputs, mask, answers = call_all(model, batch), output_mask_of(batch), {}
    for name, entries in as_rows(outputs, rows, mask).items():
        number, tokens = len(outputs[name]), counted(outputs[name], mask)
        lengths = torch.full((number,), len(entries) // max(number, 1))
        lengths = lengths if tokens is None else tokens.view(number, -1).sum(1).cpu()
        answers[name] = entries.cpu(), lengths
    main = main_name(outputs)
    label = _labels(labels_of(batch), outputs[main], rows[main])
    return answers, None if label is None else label.cpu(), label is not None or outputs[main].ndim == 2


def _labels(labels: Tensor | None, output: Tensor, rows: Rows) -> Tensor | None:
    """Labels of the rows of an output: of inputs of (N, C), or of the pixels of a map; None where they do not fit.

    Labels of tokens do not say which position they are for (`shift` of the gates on tokens does), so they are left out.
    """
    if labels is None or output.ndim == 2:
        return labels
    positions = [size for axis, size in enumerate(output.shape) if axis != rows.axis]
    is_map = output.ndim > 3 or rows.axis == 1
    return labels.flatten() if is_map and rows.shuffle == 1 and [*labels.shape] == positions else None


def agreement(answers: Answers | None, original: Answers | None) -> dict[str, float | None]:
    """How a model's answers agree with the original's.

    Returns:
        accuracy: share of rows of the main output whose top class is the label, without labels below 0 or above the
            last class, which mark what does not count;
        agreement: share whose top class is the original's;
        damage: squared change of an output as a share of its variance, mean over outputs by their weights. A value is
        None where it is not defined, as accuracy without labels, or classes of outputs that are not class scores.
    """
    values: dict[str, float | None] = dict.fromkeys(("accuracy", "agreement", "damage"))
    if answers is None or original is None:
        return values
    damages = damage_of_outputs(answers, original)
    shares = _shares(damages, original)
    values["damage"] = sum(share * damages[name] for name, share in shares.items())
    if original.classes:
        top, width, labels = _classes(answers.logits), answers.logits.shape[1], answers.labels
        if labels is not None and labels.shape == top.shape:
            counts = (labels >= 0) & (labels < width)
            values["accuracy"] = (top == labels)[counts].double().mean().item() if counts.any() else None
        values["agreement"] = (top == _classes(original.logits)).double().mean().item()
    return values


def hits(answers: Answers | None, original: Answers | None) -> Tensor | None:
    """(inputs,) whether the top class of every input is its label; without labels, whether it is the original's.

    None where an input is not one row of class scores, as with tokens or pixels, which are not independent of each
    other, and where labels mark inputs that do not count.

    >>> answers = answer(nn.Linear(4, 3), [(torch.zeros(5, 4), torch.zeros(5, dtype=torch.long))])
    >>> hits(answers, answers).shape
    torch.Size([5])
    """
    if answers is None or original is None or not original.classes:
        return None
    counts = original.counts.get(main_name(original.outputs))
    if counts is None or not bool((counts == 1).all()):
        return None
    top, labels = _classes(answers.logits), answers.labels
    if labels is None:
        return top == _classes(original.logits)
    if labels.shape != top.shape or not bool(((labels >= 0) & (labels < answers.logits.shape[1])).all()):
        return None
    return top == labels


def damage_of_outputs(answers: Answers, original: Answers) -> dict[str, float]:
    """Squared change of every output as a share of its variance, by name; outputs that never change are left out."""
    return {name: float(errors.mean()) for name, errors in _errors(answers, original).items()}


def errors_of_inputs(answers: Answers, original: Answers) -> Tensor:
    """(inputs,) the damage by input, mean over outputs by their weights; its mean is the damage in all.

    Where outputs have different numbers of inputs, such as windows of images, the inputs of all are joined, weighted.
    """
    errors, of_rows = [], _errors(answers, original)
    shares = _shares(of_rows, original)
    for name in shares:
        errors.append(shares[name] * _of_inputs(of_rows[name], original.counts.get(name)))
    if len({len(error) for error in errors}) == 1:
        return torch.stack(errors).sum(0)
    number = sum(map(len, errors))
    return torch.cat([error * (number / len(error)) for error in errors])


def divergences_of_inputs(answers: Answers, original: Answers) -> Tensor:
    """(inputs,) how far the probabilities of the main output's classes have moved, in nats (see `divergences`).

    Their mean is the mean over all rows, such as tokens.

    >>> even, other = (answer(nn.Identity(), [torch.tensor([part]).log()]) for part in ([0.5, 0.5], [0.75, 0.25]))
    >>> round(float(divergences_of_inputs(other, even)), 4)
    0.1438
    """
    parts = zip(chunks(original.logits), chunks(answers.logits), strict=True)
    rows = torch.cat([divergences(before, after) for before, after in parts]).double()
    return _of_inputs(rows, original.counts.get(main_name(original.outputs)))


def _of_inputs(rows: Tensor, counts: Tensor | None) -> Tensor:
    """(inputs,) sums over the rows of every input, so scaled that their mean is the mean of the rows."""
    counts = torch.ones(len(rows), dtype=torch.long) if counts is None else counts
    inputs = torch.repeat_interleave(torch.arange(len(counts)), counts)
    total = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, inputs, rows)
    return total * (len(counts) / max(len(rows), 1))


def _shares(names: Iterable[str], original: Answers) -> dict[str, float]:
    """The outputs that count, and how much; where none of them has a weight, all alike."""
    return weighted(names, original.weights) or weighted(names, None)


def _errors(answers: Answers, original: Answers) -> dict[str, Tensor]:
    """(rows,) errors of every output, by name."""
    if {name: value.shape for name, value in answers.outputs.items()} != {
        name: value.shape for name, value in original.outputs.items()
    }:
        raise ValueError("the outputs of the two networks have different names or shapes")
    errors = {name: relative_errors(answers.outputs[name], value) for name, value in original.outputs.items()}
    if len(errors) == 1:
        return errors
    moving = {name: value for name, value in errors.items() if not _constant(original.outputs[name])}
    return moving or errors


def _classes(rows: Stored) -> Tensor:
    return torch.cat([part.argmax(1) for part in chunks(rows)])


def _constant(rows: Stored) -> bool:
    first = next(chunks(rows))[:1]
    return all(bool((part == first).all()) for part in chunks(rows))


def relative_error(outputs: Tensor, targets: Tensor) -> float:
    """Mean squared difference of outputs (..., width) from targets, as a share of the targets' variance.

    >>> relative_error(torch.tensor([[0.0], [4.0]]), torch.tensor([[1.0], [3.0]]))
    1.0
    """
    return float(relative_errors(outputs, targets).mean())


def relative_errors(outputs: Stored, targets: Stored) -> Tensor:
    """(rows,) squared difference of every output row from its target, as a share of the targets' variance.

    >>> relative_errors(torch.tensor([[0.0], [3.0]]), torch.tensor([[1.0], [3.0]]))
    tensor([1., 0.], dtype=torch.float64)
    """
    outputs, targets = (x.flatten(0, -2) if isinstance(x, Tensor) else x for x in (outputs, targets))
    spread = Spread()
    for part in chunks(targets):
        spread.update(part)
    parts = zip(chunks(outputs), chunks(targets), strict=True)
    errors = torch.cat([(a.double() - b.to(a.device).double()).square().sum(1) for a, b in parts])
    return errors / max(spread.variance, 1e-300)
