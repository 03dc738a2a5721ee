"""What a network answers on a set of inputs, and how far the answers of two networks are apart."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from simprune.core.batches import call, labels_of
from simprune.trace.context import evaluation


@dataclass(frozen=True)
class Answers:
    """A model's outputs on the test set, with the labels where there are any."""

    logits: Tensor
    labels: Tensor | None = None


def answer(model: nn.Module, test: Iterable) -> Answers:
    """Outputs and labels on a whole test set."""
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
    """Accuracy, the share of inputs with the original's top class, and damage: the squared change of the output as a
    share of its variance. None where they have no meaning."""
    if answers is None or original is None:
        return {"accuracy": None, "agreement": None, "damage": None}
    lost = relative_error(answers.logits, original.logits)
    if answers.logits.ndim != 2:
        return {"accuracy": None, "agreement": None, "damage": lost}
    predicted = answers.logits.argmax(1)
    accuracy = None if answers.labels is None else (predicted == answers.labels).double().mean().item()
    same = (predicted == original.logits.argmax(1)).double().mean().item()
    return {"accuracy": accuracy, "agreement": same, "damage": lost}


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Squared difference of outputs (..., width) as a share of the variance of those that are wanted.

    >>> relative_error(torch.tensor([[0.0], [4.0]]), torch.tensor([[1.0], [3.0]]))
    1.0
    """
    return float(relative_errors(found, wanted).mean())


def relative_errors(found: Tensor, wanted: Tensor) -> Tensor:
    """(...) the same for every output: its squared difference as a share of the mean over all of them.

    >>> relative_errors(torch.tensor([[0.0], [3.0]]), torch.tensor([[1.0], [3.0]]))
    tensor([1., 0.], dtype=torch.float64)
    """
    found, wanted = found.double().flatten(0, -2), wanted.double().flatten(0, -2)
    variance = (wanted - wanted.mean(0)).square().sum(1).mean()
    return (found - wanted).square().sum(1) / variance.clamp(min=1e-300)
