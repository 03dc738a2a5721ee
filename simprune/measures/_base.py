"""The protocol of similarity measures: traits, `prepare` once per representation, `compare` once per pair.

A measure is a frozen dataclass in any module of this package. Its fields are its hyperparameters, its class
attributes state what a caller may rely on, and it implements `_prepare` and `_compare` on clean tensors;
everything else (validation, errors, warnings, matrices, registration by `id`) is inherited.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from simprune.core.hyperparameters import Registered

INVARIANCES = {
    "PT": "permutation of units",
    "OT": "orthogonal transformation",
    "IS": "isotropic scaling",
    "ILT": "invertible linear transformation",
    "TR": "translation",
    "AT": "affine transformation",
}


class UndefinedWarning(UserWarning):
    """A measure returned NaN because it has no value for this input; the text says why."""


class DegenerateWarning(UserWarning):
    """A measure has a value, but the input limits what it says (too few rows, zero rows); the text says how."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """The `data` that one measure needs of one representation of `rows` inputs and `width` units."""

    measure: "Measure"
    rows: int
    width: int
    device: torch.device
    data: Any = field(repr=False)


@dataclass(frozen=True)
class Measure(Registered):
    """Similarity of two representations X (N, D) and Y (N, D') whose rows belong to the same N inputs.

    A subclass sets the class attributes below that differ (hyperparameters may change them per object, see
    `_configure`), implements `_prepare` and `_compare`, and is registered by having an `id`. Its `source`, unless
    stated, is the paragraph of its docstring that starts with "Source: ".
    """

    part = "measure"

    larger_is_more_similar: ClassVar[bool] = True
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    symmetric: ClassVar[bool] = True
    is_metric: ClassVar[bool] = False
    invariant_to: ClassVar[frozenset[str]]  # codes from INVARIANCES
    needs_labels: ClassVar[bool] = False
    minimum_rows: ClassVar[int] = 2
    cost: ClassVar[str]  # one sentence: size and cost of what prepare returns, cost of a pair
    undefined: ClassVar[str]  # when the value is NaN; as a sentence's end: "cka is undefined here: ..."
    extras: ClassVar[tuple[str, ...]] = ()  # further inputs of `prepare`, (N, any) each, such as "gradients"
    keeps_float32: ClassVar[bool] = False  # `_prepare` gets float32 rows as float32; otherwise always float64

    def __init_subclass__(cls, **kwargs: Any) -> None:
        source = (cls.__doc__ or "").partition("Source: ")[2].partition("\n\n")[0]
        if source and "source" not in cls.__dict__:
            cls.source = " ".join(source.split()).removesuffix(".")
        super().__init_subclass__(**kwargs)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._configure()

    # ---- implemented by a subclass; tensors are validated and on one device ----

    def _configure(self) -> None:
        """Refuse hyperparameters beyond their limits (`_require`) and `_declare` the traits that depend on them."""

    def _prepare(self, *inputs: Any, **named: Any) -> Any:
        """`(X)`, plus `labels=` if `needs_labels`, plus every name in `extras`, to whatever a pair needs."""
        raise NotImplementedError

    def _compare(self, a: Any, b: Any) -> Tensor | float:
        """The value of a pair (a 0-d tensor stays on the device until a caller asks for numbers)."""
        raise NotImplementedError

    def _matrix(self, items: Sequence[Any]) -> Tensor:
        """All pairs (L, L), float64; overridden where all pairs together are cheaper than one by one."""
        return all_pairs(lambda i, j: self._compare(items[i], items[j]), len(items), self.symmetric)

    def _check_pair(self, a: Prepared, b: Prepared) -> None:
        """Refuse representations that do not describe the same inputs."""
        if a.rows != b.rows:
            raise ValueError(
                f"{self.id} compares representations of the same inputs: expected equal numbers of rows, "
                f"got {a.rows} and {b.rows}"
            )

    # ---- for callers ----

    def prepare(self, X: Any, labels: Any = None, **extra: Any) -> Prepared:
        """Everything `compare` needs to know of X (N, D), computed once; X itself is not changed.

        Args:
            X: tensor or array (N, D) of finite numbers; the result lives on its device.
            labels: (N,) integers, for a measure with `needs_labels`.
            extra: the measure's `extras` by name, (N, any).

        Raises:
            ValueError: if X is not such or has too few rows, or if labels or extras do not fit.
        """
        return self.prepare_all({"X": {"X": X, **extra}}, labels)[0]

    def prepare_all(self, representations: Mapping[str, Any], labels: Any = None, **extra: Any) -> list[Prepared]:
        """`prepare` of every value: rows, a dict of the arguments of `prepare`, or an earlier result, which stays.

        `labels` and `extra` go to every representation. To check all of them together costs one device round trip.
        """
        rows = {name: value for name, value in representations.items() if not isinstance(value, Prepared)}
        inputs = {name: self._inputs(name, value, extra) for name, value in rows.items()}
        require_finite(self.id, inputs)
        if self.needs_labels:
            for values in inputs.values():
                values["labels"] = class_labels(self.id, labels, values["X"])
        prepared = dict(representations)
        for name, values in inputs.items():
            X = values.pop("X")
            prepared[name] = Prepared(self, len(X), X.shape[1], X.device, self._prepare(X, **values))
        return list(prepared.values())

    def compare(self, a: Prepared, b: Prepared) -> float:
        """The value for two prepared representations; NaN with an UndefinedWarning where there is none.

        Raises ValueError if they were prepared by another measure or for different inputs.
        """
        self._check([a, b])
        value = float(self._compare(a.data, b.data))
        self._warn_if_undefined(value)
        return value

    def __call__(self, X: Any, Y: Any, labels: Any = None, **extra: Any) -> float:
        """The value for X (N, D) and Y (N, D'): `compare(prepare(X), prepare(Y))`."""
        return self.compare(*self.prepare_all({"X": X, "Y": Y}, labels, **extra))

    def with_gradients(self, X: Tensor, Y: Tensor) -> Tensor:
        """The value for X (N, D) and Y (N, D') as a 0-d tensor through which gradients flow back to both.

        Args:
            X: rows, which are not checked.
            Y: rows of the same inputs.

        Raises:
            ValueError: for a measure that has no gradient, or needs more than rows.

        >>> import simprune
        >>> X = torch.eye(4).requires_grad_()
        >>> simprune.measures.get("cka").with_gradients(X, torch.eye(4)[:, :2]).requires_grad
        True
        """
        needs = "labels" if self.needs_labels else ", ".join(self.extras)
        if needs:
            raise ValueError(f"{self.id}: expected a measure of rows alone; this one needs {needs}")
        if min(len(X), len(Y)) < self.minimum_rows:
            raise ValueError(f"{self.id} needs at least {self.minimum_rows} inputs; got {len(X)}")
        X, Y = (rows.float() if self.keeps_float32 else rows.double() for rows in (X, Y))
        try:
            value = self._compare(self._prepare(X), self._prepare(Y))
        except (RuntimeError, NotImplementedError) as error:
            if not X.requires_grad and not Y.requires_grad:
                raise
            raise ValueError(f"{self.id} has no gradient ({str(error).partition('.')[0]})") from None
        if not isinstance(value, Tensor) or ((X.requires_grad or Y.requires_grad) and not value.requires_grad):
            raise ValueError(f"{self.id} has no gradient; choose another measure, such as cka")
        return value

    def describe(self, X: Any, labels: Any = None, **extra: Any) -> float:
        """The statistic of one representation, for measures that have one (see `Statistic`)."""
        raise ValueError(f"{self.id} does not describe one representation; it compares two: call it with X, Y")

    def matrix(self, prepared: Sequence[Prepared], names: Sequence[str] | None = None) -> np.ndarray:
        """Values of all pairs, (L, L) float64; row i, column j is `compare(prepared[i], prepared[j])`."""
        self._check(prepared)
        values = self._matrix([item.data for item in prepared]).cpu().numpy()
        self._warn_if_undefined(values, names)
        return values

    def _warn_if_undefined(self, values: np.ndarray | float, names: Sequence[str] | None = None) -> None:
        """Warn of NaN in one value, or in a matrix (L, L), where the representations without a value are named."""
        undefined = np.isnan(values)
        if not undefined.any():
            return
        where = "here"
        if undefined.ndim:
            alone = np.flatnonzero(undefined.diagonal()).tolist()
            where = "for " + (", ".join(str(names[i] if names else i) for i in alone) or "some pairs")
        warnings.warn(f"{self.id} is undefined {where}: {self.undefined}", UndefinedWarning, stacklevel=3)

    # ---- checks ----

    def _require(self, name: str, holds: bool, expected: str) -> None:
        """Raise ValueError unless a condition on the hyperparameter `name` holds; `expected` completes "must be"."""
        if not holds:
            raise ValueError(f"{self.id}: {name} must be {expected}, got {getattr(self, name)!r}")

    def _check(self, prepared: Sequence[Prepared]) -> None:
        if not prepared:
            raise ValueError(f"{self.id}: expected at least one representation, got none")
        for item in prepared:
            if not isinstance(item, Prepared) or item.measure != self:
                got = item.measure if isinstance(item, Prepared) else type(item).__name__
                raise ValueError(f"expected what {self} has prepared, got {got}: call its prepare(X)")
            if item.device != prepared[0].device:
                raise ValueError(
                    f"{self.id}: expected representations on one device, got {prepared[0].device} and "
                    f"{item.device}: move them together"
                )
            self._check_pair(prepared[0], item)

    def _inputs(self, name: str, value: Any, common: Mapping[str, Any]) -> dict[str, Tensor]:
        """One representation's inputs as float tensors of the same N rows on one device.

        `value` is rows X (N, D) or a mapping of inputs by name; `common` has inputs that all representations share.
        """
        values = {**common, **(value if isinstance(value, Mapping) else {"X": value})}
        expected = ("X", *self.extras)
        if set(values) != set(expected):
            raise ValueError(
                f"{self.id}: expected the inputs {', '.join(expected)} for {name}, got {', '.join(values)}"
            )
        inputs = {key: self._rows_of(_label(name, key), values[key]) for key in expected}
        X = inputs["X"]
        if len(X) < self.minimum_rows:
            raise ValueError(f"{self.id} needs at least {self.minimum_rows} rows, got {len(X)} in {name}")
        for key in self.extras:
            if len(inputs[key]) != len(X):
                raise ValueError(f"{self.id}: {key} of {name} has {len(inputs[key])} rows, expected {len(X)}")
            inputs[key] = inputs[key].to(X.device)
        return inputs

    def _rows_of(self, name: str, values: Any) -> Tensor:
        if isinstance(values, Tensor):
            rows = values.detach()
        else:
            array = np.ascontiguousarray(values)
            if array.dtype.kind not in "buif":
                raise ValueError(f"{self.id}: {name} must hold real numbers, got an array of {array.dtype}")
            if array.dtype.kind == "f" and array.dtype.itemsize > 8:
                array = array.astype(np.float64)
            rows = torch.from_numpy(array if array.flags.writeable else array.copy())
        if rows.is_complex():
            raise ValueError(f"{self.id}: {name} must hold real numbers, got {rows.dtype}")
        if rows.ndim != 2 or rows.shape[1] == 0:
            raise ValueError(
                f"{self.id}: {name} must be rows (N, D) with D >= 1, got shape {tuple(rows.shape)}; "
                "flatten or pool maps and tokens first"
            )
        small = rows.dtype in (torch.float16, torch.bfloat16, torch.float32)
        return rows.to(torch.float32 if self.keeps_float32 and small else torch.float64)


@dataclass(frozen=True)
class Distance(Measure):
    """A measure that is 0 for equal representations and unbounded, unless a subclass narrows `range`."""

    larger_is_more_similar = False
    range = (0.0, float("inf"))


@dataclass(frozen=True)
class Statistic(Distance):
    """A number describing one representation; two of them are compared by its absolute difference.

    `_prepare` returns that number as a 0-d tensor or float.
    """

    def _compare(self, a: Any, b: Any) -> Tensor | float:
        return abs(a - b)

    def describe(self, X: Any, labels: Any = None, **extra: Any) -> float:
        """The statistic of X (N, D); raises as `prepare`, NaN with an UndefinedWarning where undefined."""
        value = self.prepare(X, labels, **extra).data
        value = value.item() if isinstance(value, Tensor) else value
        self._warn_if_undefined(value)
        return value


def all_pairs(value: Callable[[int, int], Tensor | float], count: int, symmetric: bool) -> Tensor:
    """`value(i, j)` for all pairs of `count` items: (count, count), float64; for i <= j only if `symmetric`."""
    first, second = (
        torch.triu_indices(count, count) if symmetric else torch.cartesian_prod(*[torch.arange(count)] * 2).T
    )
    values = torch.stack(
        [
            torch.as_tensor(value(i, j), dtype=torch.float64)
            for i, j in zip(first.tolist(), second.tolist(), strict=True)
        ]
    )
    result = values.new_empty(count, count)
    result[second, first] = values  # the other half if symmetric; otherwise overwritten in whole
    result[first, second] = values
    return result


def require_finite(id: str, inputs: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Refuse NaN, infinity and sums that overflow: one cheap sum per tensor, one round trip for all."""
    tensors = [(_label(name, key), rows) for name, values in inputs.items() for key, rows in values.items()]
    sums = [rows.sum().double() for _, rows in tensors]
    if not sums or torch.stack([value.to(sums[0].device) for value in sums]).isfinite().all():
        return
    for label, rows in tensors:
        bad = int((~rows.isfinite()).sum())
        if bad:
            raise ValueError(f"{id}: {label} must be finite, got {bad} NaN or infinite entries")
        if not rows.sum().isfinite():
            raise ValueError(f"{id}: {label} is too large for {rows.dtype}: scale it down")


def _label(name: str, key: str) -> str:
    return name if key == "X" else f"{key} of {name}"


def class_labels(id: str, labels: Any, X: Tensor) -> Tensor:
    """Labels as integers (N,) on the device of X (N, D); ValueError if they are none or do not fit."""
    if labels is None:
        raise ValueError(f"{id} needs labels: pass labels=, one integer per row")
    classes = torch.as_tensor(labels)
    if classes.ndim != 1 or len(classes) != len(X) or classes.is_floating_point() or classes.is_complex():
        raise ValueError(f"{id}: labels must be {len(X)} integers, got shape {tuple(classes.shape)} of {classes.dtype}")
    return classes.to(X.device, torch.int64)
