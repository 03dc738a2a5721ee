"""What a training minimises, by what the model gives: scores of classes, of tokens or of pixels, or values.

Labels count at the main output. Other outputs follow the teacher. Where a training step takes several batches, every
term is the mean over all that counts in them, as if they were one batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simprune.core.batches import call_all, inputs_of, labels_of, main_name, output_mask_of, token_ids_of
from simprune.core.example import rows_of
from simprune.repair.training.features import Features
from simprune.settings import Finetune
from simprune.trace.context import eval_mode

IGNORE = -100  # the label of a token or pixel that does not count
VALUES = ("hidden_state", "embed", "pooler")  # in the names of outputs that are no scores


@dataclass(frozen=True)
class Objective:
    """(1 - distill) x distance to the labels + distill x distance to the teacher + features x distance of features.

    Of scores the distances are cross-entropy and the KL divergence from the teacher's softened scores. Of values they
    are mean squared errors; without labels, whose unit then is unknown, log(1 + v) of the squared change v as a share
    of the teacher's variance. The latter also holds for outputs beside the main one.
    """

    how: Finetune
    teacher: nn.Module | None
    scores: bool
    per_token: bool
    features: Features | None = None

    @classmethod
    def of(cls, small: nn.Module, teacher: nn.Module | None, batch: Any, how: Finetune) -> "Objective":
        """What fits the model and its first batch.

        Raises:
            ValueError: where labels do not fit the outputs, and where there is nothing to learn from.
        """
        if labels_of(batch) is None and teacher is None:
            raise ValueError("finetune: batches have no labels and there is no teacher; give one of them")
        if how.features and teacher is None:
            raise ValueError("finetune.features: expected a teacher, whose features are followed; got none")
        with eval_mode(small), torch.no_grad():
            outputs = call_all(small, batch)
        name = main_name(outputs)
        main = outputs[name]
        labels = labels_of(batch)
        if how.outputs != "auto":
            scores = how.outputs == "scores"
        elif labels is not None:
            scores = not labels.is_floating_point()
        else:
            wide = main.shape[1 if main.ndim > 3 else -1] > 1
            scores = main.ndim in (2, 3) and wide and not any(word in name for word in VALUES)
        ids, mask = token_ids_of(batch), output_mask_of(batch)
        shapes = [tensor.shape for tensor in (ids, mask) if tensor is not None]
        features = Features(small, teacher) if how.features and teacher is not None else None
        objective = cls(how, teacher, scores, main.ndim == 3 and main.shape[:2] in shapes, features)
        if labels is not None:
            objective._targets(batch, main)
        return objective

    def weights(self, batch: Any) -> dict[str, float]:
        """How much of a batch counts: its labels, and the inputs or tokens at which the teacher is followed."""
        rows, labels = rows_of(inputs_of(batch)), labels_of(batch)
        mask, ids = output_mask_of(batch), token_ids_of(batch)
        inputs = rows
        if self.per_token:
            inputs = int(mask.sum()) if mask is not None else ids.numel() if ids is not None else rows
        counting = rows if labels is None else labels.numel()
        if labels is not None and self.scores:
            counting = int((_token_labels(labels, batch)[0] != IGNORE).sum())
        elif labels is not None and self.per_token:
            counting = inputs
        return {"labels": float(counting), "inputs": float(inputs), "rows": float(rows)}

    def loss(self, small: nn.Module, batch: Any, totals: Mapping[str, float] | None = None) -> Tensor:
        """The loss of a batch, which is a part of a step.

        Args:
            small: the model.
            batch: with labels, or without where there is a teacher.
            totals: sums of `weights` over the batches of the step; None where it is the only one.
        """
        own = self.weights(batch)
        totals = own if totals is None else totals
        share = {name: own[name] / totals[name] if totals[name] else 0.0 for name in own}
        labels, teacher, distill = labels_of(batch), self.teacher, self.how.distill
        if labels is None and teacher is None:
            raise ValueError("finetune: batches have no labels and there is no teacher; give one of them")
        outputs = call_all(small, batch)
        main = main_name(outputs)
        loss = outputs[main].sum() * 0.0
        if labels is not None and (teacher is None or distill < 1):
            part = 1 - distill if teacher is not None else 1
            loss = loss + part * share["labels"] * self._from_labels(batch, outputs[main])
        if teacher is not None and (labels is None or distill > 0 or self.features is not None):
            with eval_mode(teacher), torch.no_grad():
                wanted = {name: value.to(outputs[main].device) for name, value in call_all(teacher, batch).items()}
            mask = output_mask_of(batch)
            if labels is None or distill > 0:
                others = {name: value for name, value in wanted.items() if name != main}
                distance = share["inputs"] * self._from_teacher(outputs[main], wanted[main], mask, labels is not None)
                distance = distance + share["rows"] * _changes(outputs, others, mask)
                loss = loss + (distill if labels is not None else 1) * distance
            if self.features is not None:
                loss = loss + self.how.features * share["rows"] * self.features.loss(batch)
        return loss

    def _from_labels(self, batch: Any, main: Tensor) -> Tensor:
        """Cross-entropy, or the mean squared error; 0 for a batch in which no label counts."""
        answers, labels = self._targets(batch, main)
        if not self.scores:
            return F.mse_loss(answers, labels)
        if not bool((labels != IGNORE).any()):
            return main.sum() * 0.0
        return F.cross_entropy(answers, labels, ignore_index=IGNORE)

    def _targets(self, batch: Any, main: Tensor) -> tuple[Tensor, Tensor]:
        """Answers and labels of one form: (N, C) and (N,) or pixels behind it, or two tensors of values."""
        labels = labels_of(batch)
        assert labels is not None
        labels = labels.to(main.device)
        if not self.scores:
            if labels.shape != main.shape and labels.numel() == main.numel() and len(labels) == len(main):
                labels = labels.reshape(main.shape)  # (N,) for (N, 1)
            if labels.shape != main.shape:
                raise _unfit("labels like the outputs", labels, main)
            if not bool(labels.isfinite().all()):
                raise ValueError("finetune: labels hold NaN or infinite values; leave these inputs out")
            answers, mask = main, output_mask_of(batch)
            if mask is not None and main.ndim == 3 and mask.shape == main.shape[:2]:
                real = mask.to(main.device)
                answers, labels = answers[real], labels[real]
            return answers, labels.to(answers.dtype)
        if labels.is_floating_point():
            raise ValueError("finetune.outputs: scores need labels of whole numbers; got floating point: choose values")
        labels, shifted = _token_labels(labels, batch)
        if main.ndim == 3 and labels.shape == (*main.shape[:1], main.shape[1] - shifted):
            answers, labels = main[:, : main.shape[1] - shifted].flatten(0, 1), labels.flatten()
        elif main.shape[1:] in ((), (1,)) and labels.numel() == len(main):
            answers, labels = two_scores(main.reshape(-1, 1)), labels.reshape(-1)
        elif main.ndim > 1 and labels.shape == (len(main), *main.shape[2:]):
            answers = main
        else:
            raise _unfit("labels of one class for every input, token or pixel", labels, main)
        counting = labels[labels != IGNORE]
        classes = answers.shape[1]
        if counting.numel() and (int(counting.min()) < 0 or int(counting.max()) >= classes):
            got = f"{int(counting.min())} to {int(counting.max())}"
            raise ValueError(
                f"finetune: expected labels from 0 to {classes - 1}, as the model gives {classes} classes; got {got}; "
                "give floating-point labels for a regression"
            )
        return answers, labels.long()

    def _from_teacher(self, main: Tensor, wanted: Tensor, mask: Tensor | None, labelled: bool) -> Tensor:
        (answer, target), classes = _real((main, wanted), mask), 1 if main.ndim > 3 else -1
        if not self.scores:
            return F.mse_loss(answer, target) if labelled else _changes({"": main}, {"": wanted}, mask)
        if main.shape[1:] in ((), (1,)):
            answer, target = (two_scores(value.reshape(-1, 1)) for value in (answer, target))
        heat = self.how.temperature
        answer, target = (F.log_softmax(value / heat, classes) for value in (answer, target))
        return F.kl_div(answer, target, reduction="none", log_target=True).sum(classes).mean() * heat**2


def two_scores(logit: Tensor) -> Tensor:
    """(N, 2) scores of no and yes, whose softmax is the sigmoid of one score (N, 1).

    >>> two_scores(torch.tensor([[3.0]]))
    tensor([[0., 3.]])
    """
    return torch.cat([torch.zeros_like(logit), logit], 1)


def _unfit(expected: str, labels: Tensor, main: Tensor) -> ValueError:
    return ValueError(
        f"finetune: expected {expected}, which have shape {tuple(main.shape)}; got labels of shape "
        f"{tuple(labels.shape)}"
    )


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


def _changes(outputs: Mapping[str, Tensor], wanted: Mapping[str, Tensor], mask: Tensor | None) -> Tensor:
    """Squared change of outputs as a share of the variance of the wanted ones in this batch, mean over these."""
    changes: list[Tensor] = []
    for name in wanted:
        value, target = _real((outputs[name], wanted[name]), mask)
        variance = (target - target.mean(0)).square().sum() if len(target) > 1 else target.square().sum()
        if variance > 0:
            changes.append(torch.log1p((value - target).square().sum() / variance))  # steps stay bounded
    return torch.stack(changes).mean() if changes else next(iter(outputs.values())).new_zeros(())
