"""What is learned at one output: scores of classes, of tokens or of pixels, or values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from simprune.core.batches import output_mask_of, token_ids_of

IGNORE = -100  # the label of a token or pixel that does not count


@dataclass(frozen=True)
class Aim:
    """Distances of an output to its labels, and to the teacher's.

    Of scores they are cross-entropy and the KL divergence from the teacher's softened scores. Of values they are mean
    squared errors; without labels, whose unit then is unknown, log(1 + v) of the squared change v as a share of the
    teacher's variance.

    Args:
        where: what errors begin with.
        scores: whether the output holds scores of classes.
        per_token: whether it has one row for every token.
        temperature: by which the teacher's scores are softened.
    """

    where: str
    scores: bool
    per_token: bool
    temperature: float = 1.0

    def inputs(self, batch: Any, rows: int) -> int:
        """At how many inputs or tokens the teacher is followed, in a batch of so many rows."""
        mask, ids = output_mask_of(batch), token_ids_of(batch)
        if not self.per_token:
            return rows
        return int(mask.sum()) if mask is not None else ids.numel() if ids is not None else rows

    def labelled(self, batch: Any, labels: Tensor | None, rows: int) -> int:
        """How many labels count in a batch of so many rows; where it has none, it counts like its inputs."""
        if labels is None:
            return rows
        if self.scores:
            return int((_token_labels(labels, batch)[0] != IGNORE).sum())
        return self.inputs(batch, rows) if self.per_token else labels.numel()

    def from_labels(self, batch: Any, answers: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy, or the mean squared error; 0 for a batch in which no label counts."""
        rows, labels = self.targets(batch, answers, labels)
        if not self.scores:
            return F.mse_loss(rows.float(), labels.float())
        if not bool((labels != IGNORE).any()):
            return answers.sum() * 0.0
        return F.cross_entropy(rows.float(), labels, ignore_index=IGNORE)

    def from_teacher(self, answers: Tensor, wanted: Tensor, mask: Tensor | None, labelled: bool) -> Tensor | None:
        """The distance to the teacher's answers; None where it has no unit, since they are all alike.

        Args:
            answers: of the model.
            wanted: those of the teacher.
            mask: (N, T) true for tokens, false for padding.
            labelled: whether labels tell the unit of values.
        """
        if not self.scores:
            own, theirs = (value.float() for value in _real((answers, wanted), mask))
            return F.mse_loss(own, theirs) if labelled else _change(own, theirs)
        heat, classes = self.temperature, 1 if answers.ndim > 3 else -1
        scores = self._of_scores(answers, wanted, mask)
        own, theirs = (F.log_softmax(value.float() / heat, classes) for value in scores)
        return F.kl_div(own, theirs, reduction="none", log_target=True).sum(classes).mean() * heat**2

    def right(self, batch: Any, answers: Tensor, labels: Tensor | None, wanted: Tensor | None) -> dict[str, float]:
        """How many answers are the labels (`accurate` of `labelled`) or the teacher's (`agreeing` of `compared`)."""
        counts: dict[str, float] = {}
        if not self.scores:
            return counts
        if labels is not None:
            rows, labels = self.targets(batch, answers, labels)
            hits, counting = rows.argmax(1) == labels, labels != IGNORE
            counts |= {"accurate": float((hits & counting).sum()), "labelled": float(counting.sum())}
        if wanted is not None:
            own, theirs = self._of_scores(answers, wanted.to(answers.device), output_mask_of(batch))
            same = own.argmax(1 if own.ndim > 3 else -1) == theirs.argmax(1 if theirs.ndim > 3 else -1)
            counts |= {"agreeing": float(same.sum()), "compared": float(same.numel())}
        return counts

    def targets(self, batch: Any, answers: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Answers and labels of one form: (N, C) and (N,) or pixels behind it, or two tensors of values.

        Raises:
            ValueError: where labels do not fit the output.
        """
        labels = labels.to(answers.device)
        return self._classes(batch, answers, labels) if self.scores else self._values(batch, answers, labels)

    def _values(self, batch: Any, answers: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if labels.shape != answers.shape and labels.numel() == answers.numel() and len(labels) == len(answers):
            labels = labels.reshape(answers.shape)  # (N,) for (N, 1)
        if labels.shape != answers.shape:
            raise self._unfit("labels like the outputs", labels, answers)
        if not bool(labels.isfinite().all()):
            raise ValueError(f"{self.where}: labels hold NaN or infinite values; leave these inputs out")
        mask = output_mask_of(batch)
        if mask is not None and answers.ndim == 3 and mask.shape == answers.shape[:2]:
            real = mask.to(answers.device)
            answers, labels = answers[real], labels[real]
        return answers, labels.to(answers.dtype)

    def _classes(self, batch: Any, answers: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if labels.is_floating_point():
            raise ValueError("finetune.outputs: scores need labels of whole numbers; got floating point: choose values")
        labels, shifted = _token_labels(labels, batch)
        if answers.ndim == 3 and labels.shape == (*answers.shape[:1], answers.shape[1] - shifted):
            rows, labels = answers[:, : answers.shape[1] - shifted].flatten(0, 1), labels.flatten()
        elif answers.shape[1:] in ((), (1,)) and labels.numel() == len(answers):
            rows, labels = two_scores(answers.reshape(-1, 1)), labels.reshape(-1)
        elif answers.ndim > 1 and labels.shape == (len(answers), *answers.shape[2:]):
            rows = answers
        else:
            raise self._unfit("labels of one class for every input, token or pixel", labels, answers)
        counting = labels[labels != IGNORE]
        classes = rows.shape[1]
        if counting.numel() and (int(counting.min()) < 0 or int(counting.max()) >= classes):
            got = f"{int(counting.min())} to {int(counting.max())}"
            raise ValueError(
                f"{self.where}: expected labels from 0 to {classes - 1}, as the model gives {classes} classes; got "
                f"{got}; give floating-point labels for a regression"
            )
        return rows, labels.long()

    def _of_scores(self, answers: Tensor, wanted: Tensor, mask: Tensor | None) -> list[Tensor]:
        """Scores of both models without those at padding; of one score two, of no and yes."""
        values = _real((answers, wanted), mask)
        return [two_scores(value.reshape(-1, 1)) for value in values] if answers.shape[1:] in ((), (1,)) else values

    def _unfit(self, expected: str, labels: Tensor, answers: Tensor) -> ValueError:
        return ValueError(
            f"{self.where}: expected {expected}, which have shape {tuple(answers.shape)}; got labels of shape "
            f"{tuple(labels.shape)}"
        )


def two_scores(logit: Tensor) -> Tensor:
    """(N, 2) scores of no and yes, whose softmax is the sigmoid of one score (N, 1).

    >>> two_scores(torch.tensor([[3.0]]))
    tensor([[0., 3.]])
    """
    return torch.cat([torch.zeros_like(logit), logit], 1)


def _token_labels(labels: Tensor, batch: Any) -> tuple[Tensor, int]:
    """Labels without those of padding, and by how many tokens they were shifted.

    Labels that repeat the input tokens are those of the next token, as transformers takes them.
    """
    mask, ids = output_mask_of(batch), token_ids_of(batch)
    if mask is not None and mask.shape == labels.shape:
        labels = labels.masked_fill(~mask.to(labels.device), IGNORE)
    counts = labels != IGNORE
    if ids is None or ids.shape != labels.shape or not torch.equal(labels[counts], ids.to(labels.device)[counts]):
        return labels, 0
    labels = labels[:, 1:]
    if mask is not None and mask.shape == ids.shape:
        labels = labels.masked_fill(~mask.to(labels.device)[:, :-1], IGNORE)
    return labels, 1


def _real(values: Sequence[Tensor], mask: Tensor | None) -> list[Tensor]:
    """Values of tokens (N, T, ...) without those at padding, in rows; others as they are."""
    fits = mask is not None and values[0].ndim == 3 and mask.shape == values[0].shape[:2]
    return [value[mask.to(value.device)] for value in values] if mask is not None and fits else list(values)


def _change(value: Tensor, target: Tensor) -> Tensor | None:
    """Squared change v of an output as a share of the variance of the wanted one in this batch, as log(1 + v)."""
    variance = (target - target.mean(0)).square().sum() if len(target) > 1 else target.square().sum()
    if not variance > 0:
        return None
    return torch.log1p((value - target).square().sum() / variance)  # steps stay bounded
