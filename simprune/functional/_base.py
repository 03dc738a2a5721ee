"""The protocol of functional measures: rows per sample, batch by batch, then one reduction to a score."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

Kind = Literal["rate", "mean", "difference", "statistic"]


class Score(float):
    """Value of a measure as a float (NaN when undefined), with the evidence behind it.

    `count` samples were used and `skipped` left out; `reason` says why the value is undefined or unusual;
    `details` holds further figures such as the standard error.

    >>> score = Score(float("nan"), count=3, reason="no sample is right")
    >>> score.defined, score.reason
    (False, 'no sample is right')
    """

    count: int
    skipped: int
    reason: str
    details: dict[str, float]

    def __new__(
        cls,
        value: float,
        count: int = 0,
        skipped: int = 0,
        reason: str = "",
        details: Mapping[str, float] | None = None,
    ) -> Self:
        score = super().__new__(cls, value)
        score.count, score.skipped, score.reason, score.details = count, skipped, reason, dict(details or {})
        return score

    @property
    def defined(self) -> bool:
        return not math.isnan(self)


@dataclass(frozen=True, eq=False)
class Outputs:
    """Class scores (N, C) of one model in float64 on the CPU; plain tensors and arrays are taken as logits.

    ValueError unless N >= 1, C >= 2 and all scores are finite; probabilities must be >= 0 and sum to 1.

    >>> Outputs.from_probabilities([[0.25, 0.75], [0.5, 0.5]]).classes
    tensor([1, 0])
    """

    scores: Tensor
    are_probabilities: bool = False

    @classmethod
    def from_logits(cls, logits: Any, what: str = "logits") -> Self:
        return cls(_class_scores(logits, what))

    @classmethod
    def from_probabilities(cls, probabilities: Any) -> Self:
        rows = _class_scores(probabilities, "probabilities")
        if (rows < 0).any() or ((rows.sum(1) - 1).abs() > 1e-3).any():
            raise ValueError("probabilities must be >= 0 and every row must sum to 1; pass logits unwrapped")
        return cls(rows, are_probabilities=True)

    @classmethod
    def of(cls, outputs: Any, what: str = "logits") -> "Outputs":
        """Outputs as they are, anything else as logits; `what` names it in errors."""
        return outputs if isinstance(outputs, Outputs) else cls.from_logits(outputs, what)

    @property
    def shape(self) -> tuple[int, int]:
        return self.scores.shape[0], self.scores.shape[1]

    @cached_property
    def probabilities(self) -> Tensor:
        return self.scores if self.are_probabilities else self.scores.softmax(1)

    @cached_property
    def log_probabilities(self) -> Tensor:
        return self.scores.log() if self.are_probabilities else self.scores.log_softmax(1)

    @cached_property
    def classes(self) -> Tensor:
        """Predicted class per sample; the first index wins ties."""
        return self.scores.argmax(1)


def _class_scores(values: Any, what: str) -> Tensor:
    rows = _tensor(values, what)
    if rows.ndim != 2 or rows.shape[0] < 1 or rows.shape[1] < 2:
        shape = tuple(rows.shape)
        raise ValueError(f"{what} must be (N, C) with N >= 1 samples and C >= 2 classes; got shape {shape}")
    if bad := int((~rows.isfinite()).any(1).sum()):
        raise ValueError(f"{what} must be finite; {bad} of {len(rows)} rows hold NaN or infinity")
    return rows


def _tensor(values: Any, what: str) -> Tensor:
    """float64 on the CPU: models may live on different devices, and not every device has float64."""
    if not isinstance(values, Tensor):
        array = np.asarray(values)
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{what} must be real numbers; got dtype {array.dtype}")
        values = torch.from_numpy(np.array(array, dtype=np.float64))
    elif values.is_complex() or values.dtype == torch.bool:
        raise ValueError(f"{what} must be real numbers; got dtype {values.dtype}")
    return values.detach().cpu().double()


def _labels(labels: Any, count: int, classes: int) -> Tensor:
    if not isinstance(labels, Tensor):
        array = np.asarray(labels)
        if array.dtype.kind not in "iu":
            raise ValueError(f"labels must be integer class indices; got dtype {array.dtype}")
        labels = torch.from_numpy(np.array(array, dtype=np.int64))
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be integer class indices; got dtype {labels.dtype}")
    if labels.shape != (count,):
        raise ValueError(f"labels must have shape ({count},), one per sample; got {tuple(labels.shape)}")
    labels = labels.detach().cpu().long()
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"labels must lie in [0, {classes}) for {classes} classes; "
            f"got values from {int(labels.min())} to {int(labels.max())}"
        )
    return labels


_registry: dict[str, type["FunctionalMeasure"]] = {}


@dataclass(frozen=True)
class FunctionalMeasure(ABC):
    """Base of all functional measures; subclasses are frozen dataclasses with hyperparameters as fields.

    A measure is two steps. `_rows` turns validated outputs into float64 rows, one per sample (NaN: skipped);
    `reduce` turns the rows of all samples into a `Score`. So batches stream: concatenate the `per_sample`
    rows of each batch and reduce once. `kind` says which confidence bound fits:

    - "rate": rows (N,) of 0 and 1, the score is their mean;
    - "mean": rows (N,) of numbers, the score is their mean;
    - "difference": rows (N,) of -1, 0 and 1, the score is their mean;
    - "statistic": rows (N, ...), `reduce` is overridden.

    Identical outputs score 0, or the upper end of `range` where larger is more similar.
    """

    id: ClassVar[str]
    range: ClassVar[tuple[float, float]]
    larger_is_more_similar: ClassVar[bool] = False
    symmetric: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    kind: ClassVar[Kind]
    source: ClassVar[str]
    models: ClassVar[tuple[int, int | None]] = (2, 2)  # fewest and most models that `group` takes; None: any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "id" not in cls.__dict__:
            return
        known = _registry.get(cls.id, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):  # not a reload
            raise ValueError(f"measure id {cls.id!r} is taken by {known.__module__}.{known.__qualname__}")
        _registry[cls.id] = cls

    @abstractmethod
    def _rows(self, outputs: tuple[Outputs, ...], labels: Tensor | None) -> Tensor:
        """float64 rows, one per sample; NaN marks a sample that does not count."""

    def __call__(self, logits_a: Any, logits_b: Any, labels: Any = None) -> Score:
        """Score of a, the original, and b, the pruned model: logits (N, C) or `Outputs`; labels (N,).

        ValueError for values that are not finite, shapes that differ, or labels that are missing or unfit.
        """
        return self.group([logits_a, logits_b], labels)

    def group(self, outputs: Sequence[Any], labels: Any = None) -> Score:
        """Score of several models' outputs on the same samples."""
        return self.reduce(self.per_sample(outputs, labels))

    def per_sample(self, outputs: Sequence[Any], labels: Any = None) -> Tensor:
        """Rows of one batch from every model's outputs; concatenate them over batches and `reduce`."""
        return self._rows(*self._validated(outputs, labels))

    def reduce(self, rows: Tensor) -> Score:
        """Score from the rows of all samples: their mean, without the skipped ones."""
        used = rows[~rows.isnan()]
        if len(used) == 0:
            return Score(math.nan, count=0, skipped=len(rows), reason=f"{self.id}: every sample was skipped")
        return Score(used.mean().item(), count=len(used), skipped=len(rows) - len(used))

    def _validated(self, outputs: Sequence[Any], labels: Any) -> tuple[tuple[Outputs, ...], Tensor | None]:
        fewest, most = self.models
        if len(outputs) < fewest or (most is not None and len(outputs) > most):
            wanted = f"at least {fewest}" if most is None else fewest if fewest == most else f"{fewest} to {most}"
            raise ValueError(f"{self.id} takes the outputs of {wanted} models; got {len(outputs)}")
        checked = tuple(Outputs.of(item, f"logits of model {i}") for i, item in enumerate(outputs, start=1))
        shapes = [item.shape for item in checked]
        if len(set(shapes)) > 1:
            raise ValueError(f"{self.id} needs outputs of one shape (N, C), sample by sample; got {shapes}")
        if labels is None and self.needs_labels:
            raise ValueError(f"{self.id} needs labels; pass labels=(N,) integer class indices")
        return checked, None if labels is None else _labels(labels, *shapes[0])
