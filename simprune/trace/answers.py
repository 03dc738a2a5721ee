"""The outputs of a network on a set of inputs, and how far the outputs of two networks are apart."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from simprune.core.batches import call, labels_of
from simprune.trace.context import evaluation


@dataclass(frozen=True)
class Answers:
    """A model's outputs (N, ...) on a test set, and the labels (N,) where all batches have them; on the CPU."""

    logits: Tensor
    labels: Tensor | None = None


def answer(model: nn.Module, test: Iterable) -> Answers:
    """Outputs and labels of a model on a whole test set, in evaluation mode; ValueError for a set without batches.

    >>> answer(nn.Linear(4, 3), [(torch.zeros(5, 4), torch.zeros(5))]).logits.shape
    torch.Size([5, 3])
    """
    logits, labels = [], []
    with evaluation(model):
        for batch in test:
            logits.append(call(model, batch).cpu())
            label = labels_of(batch)
            if label is not None:
                labels.append(label.cpu())
    if not logits:
        raise ValueError("test has no batches; give at least one")
    return Answers(torch.cat(logits), torch.cat(labels) if len(labels) == len(logits) else None)


def agreement(answers: Answers | None, original: Answers | None) -> dict[str, float | None]:
    """How a model's answers agree with the original's.

    Returns:
        accuracy: share of inputs whose top class is the label; agreement: share whose top class is the original's;
        damage: squared change of the output as a share of its variance. A value is None where it is not
        defined, as accuracy without labels, or classes where outputs are not (N, classes).
    """
    values: dict[str, float | None] = dict.fromkeys(("accuracy", "agreement", "damage"))
    if answers is None or original is None:
        return values
    values["damage"] = relative_error(answers.logits, original.logits)
    if answers.logits.ndim == 2:
        for name, classes in (("accuracy", answers.labels), ("agreement", original.logits.argmax(1))):
            if classes is not None:
                values[name] = (answers.logits.argmax(1) == classes).double().mean().item()
    return values


def relative_error(outputs: Tensor, targets: Tensor) -> float:
    """Mean squared difference of outputs (..., width) from targets, as a share of the targets' variance.

    >>> relative_error(torch.tensor([[0.0], [4.0]]), torch.tensor([[1.0], [3.0]]))
    1.0
    """
    return float(relative_errors(outputs, targets).mean())


def relative_errors(outputs: Tensor, targets: Tensor) -> Tensor:
    """(rows,) squared difference of every output row from its target, as a share of the targets' variance.

    >>> relative_errors(torch.tensor([[0.0], [3.0]]), torch.tensor([[1.0], [3.0]]))
    tensor([1., 0.], dtype=torch.float64)
    """
    outputs, targets = outputs.double().flatten(0, -2), targets.double().flatten(0, -2)
    variance = (targets - targets.mean(0)).square().sum(1).mean()
    return (outputs - targets).square().sum(1) / variance.clamp(min=1e-300)
