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

from simprune.core.batches import (
    call_all,
    inputs_of,
    labels_by_output,
    labels_of,
    main_name,
    output_mask_of,
    token_ids_of,
)
from simprune.core.example import rows_of
from simprune.core.tokens import is_causal, speaks
from simprune.repair.training.features import Features
from simprune.settings import Finetune
from simprune.trace.context import eval_mode

IGNORE = -100  # the label of a token or pixel that does not count
NOTHING = "finetune: batches have no labels and there is no teacher; give one of them"
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
    own_tokens: bool = False  # the tokens that a language model takes are its labels

    @classmethod
    def of(cls, small: nn.Module, teacher: nn.Module | None, batch: Any, how: Finetune) -> "Objective":
        """What fits the model and its first batch.

        Raises:
            ValueError: where labels do not fit the outputs, where the teacher has other outputs, and where there is
            nothing to learn from.
        """
        if how.features and teacher is None:
            raise ValueError("finetune.features: expected a teacher, whose features are followed; got none")
        with eval_mode(small), torch.no_grad():
            outputs = call_all(small, batch)
            main = outputs[main_name(outputs)]
            own_tokens = labels_of(batch) is None and teacher is None and _is_language_model(small, batch, main)
            if teacher is not None:
                _require_alike(outputs, _answers(teacher, batch))
        labels, ids, mask = labels_of(batch), token_ids_of(batch), output_mask_of(batch)
        if labels is None and teacher is None and not own_tokens:
            raise ValueError(NOTHING)
        by_name = labels_by_output(batch)
        others = [name for name, value in by_name.items() if value is not None and name != main_name(outputs)]
        if others and teacher is None:
            raise ValueError(
                f"finetune: labels of {', '.join(others)} would not count, because only those of the main output do; "
                "give a teacher, which the others follow, or labels of the main output alone"
            )
        if how.outputs != "auto":
            scores = how.outputs == "scores"
        elif labels is not None:
            scores = not labels.is_floating_point()
        else:
            wide = main.shape[1 if main.ndim > 3 else -1] > 1
            named = any(word in main_name(outputs) for word in VALUES)
            scores = own_tokens or (main.ndim in (2, 3) and wide and not named)
        shapes = [tensor.shape for tensor in (ids, mask) if tensor is not None]
        per_token = main.ndim == 3 and main.shape[:2] in shapes
        features = Features(small, teacher, how.feature_measure) if how.features and teacher is not None else None
        objective = cls(how, teacher, scores, per_token, features, own_tokens)
        if objective.labels(batch) is not None:
            objective._targets(batch, main)
        return objective

    def labels(self, batch: Any) -> Tensor | None:
        """The labels of a batch; those of a language model that has no others are the tokens that it takes."""
        labels = labels_of(batch)
        return token_ids_of(batch) if labels is None and self.own_tokens else labels

    def weights(self, batch: Any) -> dict[str, float]:
        """How much of a batch counts: its labels, and the inputs or tokens at which the teacher is followed."""
        rows, labels = rows_of(inputs_of(batch)), self.labels(batch)
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
        return self.between(batch, call_all(small, batch), self.wanted(batch), totals)

    def wanted(self, batch: Any) -> dict[str, Tensor]:
        """What the teacher answers to a batch; nothing where it does not count."""
        labelled = self.labels(batch) is not None
        if self.teacher is None or (labelled and not self.how.distill and self.features is None):
            return {}
        return _answers(self.teacher, batch)

    def between(
        self,
        batch: Any,
        outputs: Mapping[str, Tensor],
        wanted: Mapping[str, Tensor],
        totals: Mapping[str, float] | None = None,
    ) -> Tensor:
        """The loss of outputs of the model, where the teacher gives the wanted ones; see `loss`."""
        own = self.weights(batch)
        totals = own if totals is None else totals
        share = {name: own[name] / totals[name] if totals[name] else 0.0 for name in own}
        labels, distill = self.labels(batch), self.how.distill if wanted else 0.0
        if labels is None and not wanted:
            raise ValueError(NOTHING)
        main = main_name(outputs)
        loss = outputs[main].sum() * 0.0
        if labels is not None and distill < 1:
            loss = loss + (1 - distill) * share["labels"] * self._from_labels(batch, outputs[main])
        if wanted and (labels is None or distill > 0):
            wanted = {name: value.to(outputs[main].device) for name, value in wanted.items()}
            mask = output_mask_of(batch)
            others = {name: value for name, value in wanted.items() if name != main}
            distance = share["inputs"] * self._from_teacher(outputs[main], wanted[main], mask, labels is not None)
            distance = distance + share["rows"] * _changes(outputs, others, mask)
            loss = loss + (distill if labels is not None else 1) * distance
        if wanted and self.features is not None:
            loss = loss + self.how.features * share["rows"] * self.features.loss(batch)
        return loss

    def right(self, batch: Any, outputs: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, float]:
        """How many answers are the labels (`accurate` of `labelled`) or the teacher's (`agreeing` of `compared`)."""
        counts: dict[str, float] = {}
        if not self.scores:
            return counts
        main = outputs[main_name(outputs)]
        if self.labels(batch) is not None:
            answers, labels = self._targets(batch, main)
            hits, counting = answers.argmax(1) == labels, labels != IGNORE
            counts |= {"accurate": float((hits & counting).sum()), "labelled": float(counting.sum())}
        if wanted:
            answers, theirs = self._of_scores(main, wanted[main_name(outputs)].to(main.device), output_mask_of(batch))
            same = answers.argmax(1 if answers.ndim > 3 else -1) == theirs.argmax(1 if theirs.ndim > 3 else -1)
            counts |= {"agreeing": float(same.sum()), "compared": float(same.numel())}
        return counts

    def _from_labels(self, batch: Any, main: Tensor) -> Tensor:
        """Cross-entropy, or the mean squared error; 0 for a batch in which no label counts."""
        answers, labels = self._targets(batch, main)
        if not self.scores:
            return F.mse_loss(answers.float(), labels.float())
        if not bool((labels != IGNORE).any()):
            return main.sum() * 0.0
        return F.cross_entropy(answers.float(), labels, ignore_index=IGNORE)

    def _targets(self, batch: Any, main: Tensor) -> tuple[Tensor, Tensor]:
        """Answers and labels of one form: (N, C) and (N,) or pixels behind it, or two tensors of values."""
        labels = self.labels(batch)
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
        if not self.scores:
            answer, target = _real((main, wanted), mask)
            return F.mse_loss(answer.float(), target.float()) if labelled else _changes({"": main}, {"": wanted}, mask)
        heat, classes = self.how.temperature, 1 if main.ndim > 3 else -1
        answer, target = (F.log_softmax(value.float() / heat, classes) for value in self._of_scores(main, wanted, mask))
        return F.kl_div(answer, target, reduction="none", log_target=True).sum(classes).mean() * heat**2

    def _of_scores(self, main: Tensor, wanted: Tensor, mask: Tensor | None) -> list[Tensor]:
        """Scores of both models without those at padding; of one score two, of no and yes."""
        values = _real((main, wanted), mask)
        return [two_scores(value.reshape(-1, 1)) for value in values] if main.shape[1:] in ((), (1,)) else values


def _answers(teacher: nn.Module, batch: Any) -> dict[str, Tensor]:
    with eval_mode(teacher), torch.no_grad():
        return call_all(teacher, batch)


def _require_alike(outputs: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless the teacher has the outputs of the model."""
    own, theirs = ({name: tuple(value.shape) for name, value in values.items()} for values in (outputs, wanted))
    if own != theirs:
        raise ValueError(f"teacher: expected outputs like those of the model, {own}; got {theirs}; give its original")


def two_scores(logit: Tensor) -> Tensor:
    """(N, 2) scores of no and yes, whose softmax is the sigmoid of one score (N, 1).

    >>> two_scores(torch.tensor([[3.0]]))
    tensor([[0., 3.]])
    """
    return torch.cat([torch.zeros_like(logit), logit], 1)


def _is_language_model(model: nn.Module, batch: Any, main: Tensor) -> bool:
    ids = token_ids_of(batch)
    return (
        ids is not None
        and main.ndim == 3
        and ids.shape == main.shape[:2]
        and speaks(model, main.shape[2])
        and is_causal(model, batch)
    )


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
        value, target = (part.float() for part in _real((outputs[name], wanted[name]), mask))
        variance = (target - target.mean(0)).square().sum() if len(target) > 1 else target.square().sum()
        if variance > 0:
            changes.append(torch.log1p((value - target).square().sum() / variance))  # steps stay bounded
    return torch.stack(changes).mean() if changes else next(iter(outputs.values())).new_zeros(())
