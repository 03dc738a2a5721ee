"""The protocol of functional measures: rows per sample, batch by batch, then one reduction to a score."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from simprune.core.hyperparameters import Registered
from simprune.core.rows import Rows

Kind = Literal["rate", "mean", "difference", "worst_difference", "statistic"]
Form = Literal["classes", "tokens", "vectors", "multilabel", "maps", "models"]
# Outputs that measures of every form take, in words.
FORMS: dict[str, str] = {
    "classes": "class scores (N, C)",
    "tokens": "token logits (N, T, C)",
    "maps": "class scores of pixels (N, C, H, W)",
    "vectors": "any (N, ...)",
    "multilabel": "logits (N, L)",
    "models": "both models",
}
Bounds = Callable[[float, float], tuple[float, float]]  # (scale, confidence): scale 2 is twice as many samples


class Score(float):
    """Value of a measure as a float (NaN when undefined), with the evidence behind it.

    `count` samples were used and `skipped` left out; `reason` says why the value is undefined or unusual;
    `details` holds further figures such as the standard error or counts per class.

    >>> score = Score(float("nan"), count=3, reason="no sample is right")
    >>> score.defined, score.reason
    (False, 'no sample is right')
    """

    count: int
    skipped: int
    reason: str
    details: dict[str, Any]

    def __new__(
        cls, value: float, count: int = 0, skipped: int = 0, reason: str = "", details: Mapping[str, Any] | None = None
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
        return cls(class_scores(logits, what))

    @classmethod
    def from_probabilities(cls, probabilities: Any) -> Self:
        rows = class_scores(probabilities, "probabilities")
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


def class_scores(values: Any, what: str) -> Tensor:
    """Finite class scores (N, C), N >= 1, C >= 2, in float64 on the CPU; `what` names them in errors."""
    expected = "(N, C) with N >= 1 samples and C >= 2 classes"
    return finite(values, what, expected, lambda x: x.ndim == 2 and x.shape[1] >= 2)


def finite(
    values: Any, what: str, expected: str, fits: Callable[[Tensor], bool], at_least: torch.dtype = torch.float64
) -> Tensor:
    """Finite real numbers of a shape that `fits`, on the CPU, in float64 or `at_least` this type."""
    rows = _numbers(values, what, "real numbers", "fiu")
    if rows.numel() == 0 or not fits(rows):
        raise ValueError(f"{what} must be {expected}; got shape {tuple(rows.shape)}")
    if bad := int((~rows.isfinite()).reshape(len(rows), -1).any(1).sum()):
        raise ValueError(f"{what} must be finite; {bad} of {len(rows)} rows hold NaN or infinity")
    return rows.to(torch.promote_types(rows.dtype, at_least))


def _numbers(values: Any, what: str, wanted: str, kinds: str) -> Tensor:
    """Values whose type is one of `kinds`, NumPy's letters, on the CPU (models may live on different devices)."""
    if isinstance(values, Tensor):
        dtype = values.dtype
        kind = "c" if dtype.is_complex else "f" if dtype.is_floating_point else "b" if dtype == torch.bool else "i"
    else:
        values = np.asarray(values)
        kind, dtype = values.dtype.kind, values.dtype
    if kind not in kinds:
        raise ValueError(f"{what} must be {wanted}; got dtype {dtype}")
    if isinstance(values, np.ndarray):
        values = torch.from_numpy(values.astype(np.float64 if "f" in kinds else np.int64))
    return values.detach().cpu()


def integers(labels: Any, shape: tuple[int, ...], classes: int, ignore: int | None = None) -> Tensor:
    """Class indices of this shape on the CPU, in [0, classes) or `ignore`."""
    labels = _numbers(labels, "labels", "integer class indices", "iu")
    if labels.shape != shape:
        raise ValueError(f"labels must have shape {tuple(shape)}; got {tuple(labels.shape)}")
    labels = labels.long()
    outside = labels[(labels < 0) | (labels >= classes)]
    if ignore is not None:
        outside = outside[outside != ignore]
    if len(outside):
        also = "" if ignore is None else f" or be {ignore}"
        raise ValueError(
            f"labels must lie in [0, {classes}) for {classes} classes{also}; "
            f"got values from {int(outside.min())} to {int(outside.max())} outside"
        )
    return labels


@dataclass(frozen=True)
class FunctionalMeasure(Registered, ABC):
    """Base of all functional measures; subclasses are frozen dataclasses with hyperparameters as fields.

    A measure is two steps. `_rows` turns validated outputs into rows, one per sample and small whatever the number
    of classes (float64, NaN: skipped; or integers); `reduce` turns the rows of all samples into a `Score`. So batches
    stream: `stream()`, or concatenate the `per_sample` rows of each batch and reduce once. `kind` says which
    confidence bound fits `values(rows)`:

    - "rate": (N,) of 0 and 1, the score is their mean;
    - "mean": (N,) of numbers, the score is their mean;
    - "difference": (N,) of -1, 0 and 1, the score is their mean;
    - "worst_difference": (N, ...), `reduce` is overridden: the largest (lost - gained) / count of several classes,
      with lists over them in `details`: "classes", "count", "lost" and "gained";
    - "statistic": (N, ...), `reduce` is overridden.

    A measure with other bounds overrides `bounds`. A measure that reads inside of models has the form "models"; it
    can be a gate if it overrides `gather`. `gate` says whether a verdict on two models can use the measure.

    Identical outputs score 0 (or the lower end of `range` above it), or the upper end of `range` where larger is more
    similar. A score that its formula leaves undefined is NaN with a reason. ValueError for a hyperparameter of the
    wrong type.
    """

    part = "functional"

    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    larger_is_more_similar: ClassVar[bool] = False
    symmetric: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    kind: ClassVar[Kind] = "statistic"
    gate: ClassVar[bool] = True  # False: of more models than two, or of models without `gather`
    models: ClassVar[tuple[int, int | None]] = (2, 2)  # fewest and most models that `group` takes; None: any
    form: ClassVar[Form] = "classes"  # what it takes: class scores (N, C), ... (`FORMS`), or models
    streams: ClassVar[bool] = True  # False: rows depend on all samples, so `per_sample` needs them at once
    skips: ClassVar[str] = "every sample was skipped"  # why no sample is left

    @abstractmethod
    def _rows(self, outputs: tuple[Any, ...], labels: Any) -> Tensor:
        """Rows, one per sample, of validated outputs and labels (or None); NaN marks a sample that does not count."""

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

    def stream(self) -> "Stream":
        """Collects batches; see `Stream`."""
        return Stream(self)

    def ready(self) -> None:
        """Raise ValueError or FileNotFoundError where a package or a file that the measure needs is missing."""
        return

    def gather(self, model_a: nn.Module, model_b: nn.Module, batches: Any) -> "Gathered":
        """Rows from two models and test batches, for a measure of the form "models" that is a gate."""
        raise NotImplementedError(f"{self.id} does not gather rows from models; give it their outputs")

    def bounds(self, rows: Tensor, strata: np.ndarray, seed: int) -> tuple[Bounds, str] | None:
        """One-sided confidence bounds of the score of these rows and their method's name; None: those of `kind`.

        `strata` (N,) are the groups of samples that a bootstrap resamples separately.
        """
        return None

    def values(self, rows: Tensor) -> Tensor:
        """The part of the rows that `kind` speaks of: the first column where others are only evidence."""
        return rows if self.kind in ("statistic", "worst_difference") or rows.ndim == 1 else rows[:, 0]

    def reduce(self, rows: Tensor) -> Score:
        """Score from the rows of all samples: the mean of their values, without the skipped ones."""
        values = self.values(rows)
        used = values[~values.isnan()]
        skipped = len(values) - len(used)
        if len(used) == 0:
            return Score(math.nan, count=0, skipped=skipped, reason=f"{self.id}: {self.skips}")
        return Score(used.double().mean().item(), count=len(used), skipped=skipped)

    def _require(self, holds: bool, otherwise: str) -> None:
        """ValueError that says `otherwise`, unless the condition on the hyperparameters holds."""
        if not holds:
            raise ValueError(f"{self.id}: {otherwise}")

    def _undefined(self, rows: Tensor, reason: str, value: float = math.nan, **details: Any) -> Score:
        """A score that its formula does not give, with the reason."""
        return Score(value, count=len(rows), reason=f"{self.id}: {reason}", details=details)

    def _output(self, value: Any, what: str) -> Any:
        """One model's output, validated; it has a `shape` that all models share. Overridden with `form`."""
        return Outputs.of(value, what)

    def _truth(self, labels: Any, shape: tuple[int, ...]) -> Tensor | None:
        """Validated labels for outputs of this shape; overridden with `form`."""
        return integers(labels, shape[:1], shape[1])

    def _alike(self, sample: tuple[int, ...]) -> tuple[int, ...]:
        """What batches must have in common of the shape of a sample: all of it, or less where positions may differ."""
        return sample

    def _check_number(self, count: int, of: str = "") -> None:
        """ValueError for a number of models that the measure does not take."""
        fewest, most = self.models
        if count < fewest or (most is not None and count > most):
            wanted = f"at least {fewest}" if most is None else fewest if fewest == most else f"{fewest} to {most}"
            raise ValueError(f"{self.id} takes {of}{wanted} models; got {count}")

    def _validated(self, outputs: Sequence[Any], labels: Any) -> tuple[tuple[Any, ...], Tensor | None]:
        self._check_number(len(outputs), "the outputs of ")
        checked = tuple(self._output(item, f"logits of model {i}") for i, item in enumerate(outputs, start=1))
        shapes = [tuple(item.shape) for item in checked]
        if len(set(shapes)) > 1:
            raise ValueError(f"{self.id} needs outputs of one shape, sample by sample; got {shapes}")
        if labels is None and self.needs_labels:
            raise ValueError(f"{self.id} needs labels; pass labels=(N,) integer class indices")
        return checked, None if labels is None else self._truth(labels, shapes[0])


@dataclass(frozen=True, eq=False)
class Gathered:
    """Rows of a measure from two models, one per sample (or group of samples); `columns` names what the columns are.

    With `columns`, the score is that of the worst column, and a verdict says which one that is.
    """

    rows: Tensor
    columns: tuple[str, ...] = ()


class Stream:
    """Score of a measure over batches: only rows are stored, so memory does not grow with the number of classes.

    (A measure that does not `streams` needs all outputs; they are stored until `rows`.) ValueError for a batch that
    does not fit the ones before, and for no batch at all.

    >>> from simprune import functional
    >>> stream = functional.get("disagreement").stream()
    >>> stream.update([[[2.0, 1.0]], [[2.0, 1.0]]])
    >>> stream.update([[[0.0, 1.0]], [[1.0, 0.0]]])
    >>> stream.score()
    0.5
    """

    def __init__(self, measure: FunctionalMeasure) -> None:
        self.measure = measure
        self._batches: list[tuple[Sequence[Any], Any]] = []  # of a measure that does not stream
        self._rows, self._shape = Rows(), torch.Size()  # of all batches, flattened, and the shape of one of them
        self._layout: tuple[int, tuple[int, ...], bool] | None = None

    def update(self, outputs: Sequence[Any], labels: Any = None) -> None:
        """Add one batch: every model's outputs, in the order of `group`, and the labels."""
        checked, truth = self.measure._validated(outputs, labels)
        self._require_alike((len(checked), self.measure._alike(tuple(checked[0].shape[1:])), truth is not None))
        if self.measure.streams:
            rows = self.measure._rows(checked, truth)
            self._shape = rows.shape[1:]
            self._rows.add(rows.reshape(len(rows), -1))
        else:
            self._batches.append((outputs, labels))

    def merge(self, other: "Stream") -> None:
        """Add the batches that another stream of the measure has seen."""
        if other._layout is not None:
            self._require_alike(other._layout)
            self._shape = other._shape
            self._batches += other._batches
            if len(other._rows):
                self._rows.add(other._rows.tensor())

    def _require_alike(self, layout: tuple[int, tuple[int, ...], bool]) -> None:
        if self._layout not in (None, layout):
            what = "(models, shape of a sample, with labels)"
            raise ValueError(f"{self.measure.id}: batches must be alike in {what}; got {self._layout}, then {layout}")
        self._layout = layout

    def rows(self) -> Tensor:
        """Rows of all batches so far, as of `per_sample`."""
        if self._layout is None:
            raise ValueError(f"{self.measure.id}: no batch was added; call update first")
        if self.measure.streams:
            return self._rows.tensor().view(-1, *self._shape)
        batches, labels = zip(*self._batches, strict=True)
        outputs = [torch.cat(list(map(torch.as_tensor, parts))) for parts in zip(*batches, strict=True)]
        truth = torch.cat(list(map(torch.as_tensor, labels))) if self._layout[2] else None
        return self.measure.per_sample(outputs, truth)

    def score(self) -> Score:
        """Score of all batches so far."""
        return self.measure.reduce(self.rows())


class Rate(FunctionalMeasure):
    """A share of the samples: rows are 0 and 1, NaN where a sample does not count."""

    kind = "rate"


def class_columns(outputs: Sequence[Outputs], *more: Tensor) -> Tensor:
    """Predicted classes of every model and further integers (N,) as compact rows (N, m + more)."""
    return torch.stack([*(item.classes for item in outputs), *more], 1).int()


def rights(outputs: Sequence[Outputs], labels: Tensor) -> Tensor:
    """Whether every one of the m models is right, (N, m)."""
    return class_columns(outputs) == labels[:, None]
