"""What a training minimises: the distances of all outputs to their labels and to the teacher's answers.

Where a training step takes several batches, every term is the mean over all that counts in them, as if they were one
batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core.batches import call_all, inputs_of, main_name, output_mask_of, token_ids_of
from simprune.core.example import rows_of
from simprune.core.labels import labels_by_output, labels_of
from simprune.core.names import did_you_mean
from simprune.core.tokens import is_causal, speaks
from simprune.repair.training.aim import Aim
from simprune.repair.training.features import Features
from simprune.settings import Finetune
from simprune.trace.context import eval_mode
from simprune.trace.outputs import weighted

NOTHING = "finetune: batches have no labels and there is no teacher; give one of them"
WEIGHTLESS = (
    "finetune.output_weights: expected a weight above 0 for an output that has labels; got 0; or give a teacher"
)
VALUES = ("hidden_state", "embed", "pooler")  # in the names of outputs that are no scores
Outputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Objective:
    """(1 - distill) x distance to the labels + distill x distance to the teacher + features x distance of features.

    Distances are means over outputs by their weights: those to labels over the outputs that have some, those to the
    teacher over all. What they are at an output, its `Aim` says.
    """

    how: Finetune
    teacher: nn.Module | None
    aims: Mapping[str, Aim]
    main: str
    features: Features | None = None
    labelled: tuple[str, ...] = ()  # the outputs with labels in the first batch
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
            main = main_name(outputs)
            own_tokens = teacher is None and _has_no_labels(batch) and _is_language_model(small, batch, outputs[main])
            if teacher is not None:
                _require_alike(outputs, _answers(teacher, batch))
        _require_weights(how, outputs)
        features = Features(small, teacher, how.feature_measure) if how.features and teacher is not None else None
        objective = cls(how, teacher, {}, main, features, own_tokens=own_tokens)
        labels = objective.labels(batch)
        if not labels and teacher is None:
            raise ValueError(NOTHING if _has_no_labels(batch) else WEIGHTLESS)
        aims = {name: _aim(name, value, labels.get(name), batch, how, main, outputs) for name, value in outputs.items()}
        for name, value in labels.items():
            aims[name].targets(batch, outputs[name], value)
        return replace(objective, aims=aims, labelled=tuple(labels))

    def labels(self, batch: Any) -> dict[str, Tensor]:
        """The labels of a batch by output, where that has some and counts; of a language model perhaps its tokens."""
        ids = token_ids_of(batch)
        if self.own_tokens and ids is not None and _has_no_labels(batch):
            return {self.main: ids}
        labels = labels_by_output(batch) or {self.main: labels_of(batch)}
        return {name: value for name, value in labels.items() if value is not None and self._weights.get(name, 1)}

    def weights(self, batch: Any) -> dict[str, float]:
        """How much of a batch counts: by output its labels, and where the teacher is followed, inputs or tokens."""
        rows, labels = rows_of(inputs_of(batch)), self.labels(batch)
        counts = {"rows": float(rows)}
        for name, aim in self.aims.items():
            counts[f"labels of {name}"] = float(aim.labelled(batch, labels.get(name), rows))
            counts[f"inputs of {name}"] = float(aim.inputs(batch, rows))
        return counts

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
        if self.teacher is None or (self.labels(batch) and not self.how.distill and self.features is None):
            return {}
        return _answers(self.teacher, batch)

    def between(
        self, batch: Any, outputs: Outputs, wanted: Outputs, totals: Mapping[str, float] | None = None
    ) -> Tensor:
        """The loss of outputs of the model, where the teacher gives the wanted ones; see `loss`."""
        own = self.weights(batch)
        totals = own if totals is None else totals
        share = {name: own[name] / totals[name] if totals[name] else 0.0 for name in own}
        labels, distill = self.labels(batch), self.how.distill if wanted else 0.0
        if not labels and not wanted:
            raise ValueError(NOTHING)
        outputs = self._named(outputs)
        loss = outputs[self.main].sum() * 0.0
        if labels and distill < 1:
            for name, weight in weighted(labels, self._weights).items():
                distance = self.aims[name].from_labels(batch, outputs[name], labels[name])
                loss = loss + (1 - distill) * weight * share[f"labels of {name}"] * distance
        if wanted and (not labels or distill > 0):
            distances = self._from_teacher(batch, outputs, wanted, labels)
            for name, weight in weighted(distances, self._weights).items():
                part = weight * share[f"inputs of {name}"] * distances[name]
                loss = loss + (distill if labels else 1) * part
        if wanted and self.features is not None:
            loss = loss + self.how.features * share["rows"] * self.features.loss(batch)
        return loss

    def right(self, batch: Any, outputs: Outputs, wanted: Outputs) -> dict[str, float]:
        """Of the main output, how many answers are the labels or the teacher's; see `Aim.right`."""
        main = self._named(outputs)[self.main]
        return self.aims[self.main].right(batch, main, self.labels(batch).get(self.main), wanted.get(self.main))

    def _from_teacher(self, batch: Any, outputs: Outputs, wanted: Outputs, labels: Outputs) -> dict[str, Tensor]:
        """The distances of outputs to the teacher's, by name; those without a unit are left out."""
        mask, distances = output_mask_of(batch), dict[str, Tensor]()
        for name, value in wanted.items():
            target = value.to(outputs[name].device)
            distance = self.aims[name].from_teacher(outputs[name], target, mask, name in labels)
            distances |= {} if distance is None else {name: distance}
        return distances

    def _named(self, outputs: Outputs) -> Outputs:
        """Outputs with the main one by its name, which may be another one where a model returns more in training."""
        return outputs if self.main in outputs else {**outputs, self.main: outputs[main_name(outputs)]}

    @property
    def _weights(self) -> Mapping[str, float]:
        return self.how.output_weights or {}


def _has_no_labels(batch: Any) -> bool:
    named = labels_by_output(batch)
    return all(value is None for value in named.values()) if named else labels_of(batch) is None


def _aim(
    name: str, value: Tensor, labels: Tensor | None, batch: Any, how: Finetune, main: str, outputs: Outputs
) -> Aim:
    """What is learned at an output: labels say what it is; without labels a main output may be guessed to be scores."""
    if name == main and how.outputs != "auto":
        scores = how.outputs == "scores"
    elif labels is not None:
        scores = not labels.is_floating_point()
    else:
        wide = value.ndim in (2, 3) and value.shape[-1] > 1
        scores = name == main and wide and not any(word in name for word in VALUES)
    shapes = [tensor.shape for tensor in (token_ids_of(batch), output_mask_of(batch)) if tensor is not None]
    where = "finetune" if len(outputs) == 1 else f"finetune, output {name}"
    return Aim(where, scores, value.ndim == 3 and value.shape[:2] in shapes, how.temperature)


def _require_weights(how: Finetune, outputs: Outputs) -> None:
    """Raise ValueError unless weights are those of outputs, of which one counts."""
    weights = how.output_weights or {}
    for name in weights:
        if name not in outputs:
            raise ValueError(
                f"finetune.output_weights: the network has no output {name!r}; {did_you_mean(name, outputs)}"
            )
    if not weighted(outputs, weights):
        raise ValueError("finetune.output_weights: expected a weight above 0 for one output; got 0 for all")


def _answers(teacher: nn.Module, batch: Any) -> dict[str, Tensor]:
    with eval_mode(teacher), torch.no_grad():
        return call_all(teacher, batch)


def _require_alike(outputs: Outputs, wanted: Outputs) -> None:
    """Raise ValueError unless the teacher has the outputs of the model."""
    own, theirs = ({name: tuple(value.shape) for name, value in values.items()} for values in (outputs, wanted))
    if own != theirs:
        raise ValueError(f"teacher: expected outputs like those of the model, {own}; got {theirs}; give its original")


def _is_language_model(model: nn.Module, batch: Any, main: Tensor) -> bool:
    return speaks(model, batch, main) and is_causal(model, batch)
