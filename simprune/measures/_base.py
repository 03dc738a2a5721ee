"""What a similarity measure is: declared traits, `prepare` once per representation, `compare` once per pair.

A measure is a frozen dataclass in any module of this package. Its fields are its hyperparameters, its class
attributes state what a caller may rely on, and it implements `_prepare` and `_compare` on clean tensors;
everything else (validation, errors, warnings, matrices, registration by `id`) is inherited.
"""

import warnings
from collections.abc import Mapping, Sequence
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
    """What one measure remembers of one representation: of `rows` inputs and `width` units, its `data`."""

    measure: "Measure"
    rows: int
    width: int
    device: torch.device
    data: Any = field(repr=False)


@dataclass(frozen=True)
class Measure(Registered):
    """Similarity of two representations X (N, D) and Y (N, D') whose rows belong to the same N inputs.

    A subclass sets the class attributes below (a hyperparameter may change them per object, see `_declare`),
    implements `_prepare` and `_compare`, and is registered by having an `id`.
    """

    part = "measure"

    larger_is_more_similar: ClassVar[bool]
    range: ClassVar[tuple[float, float]]
    symmetric: ClassVar[bool] = True
    is_metric: ClassVar[bool] = False
    invariant_to: ClassVar[frozenset[str]]  # codes from INVARIANCES
    needs_labels: ClassVar[bool] = False
    minimum_rows: ClassVar[int] = 2
    cost: ClassVar[str]  # one sentence: what prepare holds and costs, what a pair costs
    undefined: ClassVar[str]  # when the value is NaN; as a sentence's end: "cka is undefined here: ..."
    extras: ClassVar[tuple[str, ...]] = ()  # further inputs of `prepare`, (N, any) each, such as "gradients"
    keeps_float32: ClassVar[bool] = False  # `_prepare` gets float32 rows as float32; otherwise always float64

    # ---- what a subclass implements, on validated tensors of one device ----

    def _prepare(self, *inputs: Any, **named: Any) -> Any:
        """`(X)`, plus `labels=` if `needs_labels`, plus every name in `extras`, to whatever a pair needs."""
        raise NotImplementedError

    def _compare(self, a: Any, b: Any) -> Tensor | float:
        """The value of a pair (a 0-d tensor stays on the device until a caller asks for numbers)."""
        raise NotImplementedError

    def _matrix(self, items: Sequence[Any]) -> Tensor:
        """All pairs (L, L), float64; overridden where all pairs together are cheaper than one by one."""
        size = len(items)
        pairs = [(i, j) for i in range(size) for j in range(i if self.symmetric else 0, size)]
        values = torch.stack(
            [torch.as_tensor(self._compare(items[i], items[j]), dtype=torch.float64) for i, j in pairs]
        )
        first, second = torch.tensor(pairs, device=values.device).T
        result = values.new_empty(size, size)
        result[first, second] = values
        if self.symmetric:
            result[second, first] = values
        return result

    def _check_pair(self, a: Prepared, b: Prepared) -> None:
        """Refuse representations that do not describe the same inputs."""
        if a.rows != b.rows:
            raise ValueError(
                f"{self.id} compares representations of the same inputs: expected equal numbers of rows, "
                f"got {a.rows} and {b.rows}"
            )

    # ---- what a caller uses ----

    def prepare(self, X: Any, labels: Any = None, **extra: Any) -> Prepared:
        """Everything `compare` needs to know of X (N, D), computed once; X itself is not changed.

        X is a tensor or array of finite numbers; the result lives on its device. `labels` (N,) are integers.
        Raises ValueError if X is not such or has too few rows, or if labels or extras do not fit.
        """
        return self.prepare_all({"X": {"X": X, **extra}}, labels)[0]

    def prepare_all(self, representations: Mapping[str, Any], labels: Any = None, **extra: Any) -> list[Prepared]:
        """`prepare` each value: rows, a dict of the arguments of `prepare`, or what was prepared before.

        `labels` and `extra` go to every one. Checking all of them together costs one device round trip.
        """
        given = {
            name: value if isinstance(value, Mapping) else {"X": value}
            for name, value in representations.items()
            if not isinstance(value, Prepared)
        }
        inputs = {name: self._inputs(name, {**extra, **values}) for name, values in given.items()}
        _require_finite(self.id, inputs)
        if self.needs_labels and inputs:
            for values in inputs.values():
                values["labels"] = _labels(self.id, labels, values["X"])
        prepared = []
        for name, value in representations.items():
            if isinstance(value, Prepared):
                prepared.append(value)
                continue
            X = inputs[name].pop("X")
            count, width = X.shape
            prepared.append(Prepared(self, count, width, X.device, self._prepare(X, **inputs[name])))
        return prepared

    def compare(self, a: Prepared, b: Prepared) -> float:
        """The value for two prepared representations; NaN with an UndefinedWarning where there is none.

        Raises ValueError if they were prepared by another measure or for different inputs.
        """
        self._check([a, b])
        value = float(self._compare(a.data, b.data))
        if np.isnan(value):
            self._warn("here")
        return value

    def __call__(self, X: Any, Y: Any, labels: Any = None, **extra: Any) -> float:
        """The value for X (N, D) and Y (N, D'): `compare(prepare(X), prepare(Y))`."""
        return self.compare(*self.prepare_all({"X": X, "Y": Y}, labels, **extra))

    def describe(self, X: Any, labels: Any = None, **extra: Any) -> float:
        """The statistic of one representation, for measures that have one (see `Statistic`)."""
        raise ValueError(f"{self.id} does not describe one representation; it compares two: call it with X, Y")

    def matrix(self, prepared: Sequence[Prepared], names: Sequence[str] | None = None) -> np.ndarray:
        """Values of all pairs, (L, L) float64; row i, column j is `compare(prepared[i], prepared[j])`."""
        self._check(prepared)
        values = self._matrix([each.data for each in prepared]).cpu().numpy()
        self._warn_of_undefined(values, names)
        return values

    def _warn_of_undefined(self, values: np.ndarray, names: Sequence[str] | None = None) -> None:
        if np.isnan(values).any():
            alone = np.flatnonzero(np.isnan(values.diagonal())).tolist()
            self._warn("for " + (", ".join(str(names[i] if names else i) for i in alone) or "some pairs"))

    def _warn(self, where: str) -> None:
        warnings.warn(f"{self.id} is undefined {where}: {self.undefined}", UndefinedWarning, stacklevel=3)

    # ---- checks ----

    def _check(self, prepared: Sequence[Prepared]) -> None:
        if not prepared:
            raise ValueError(f"{self.id}: expected at least one representation, got none")
        for each in prepared:
            if not isinstance(each, Prepared) or each.measure != self:
                got = each.measure if isinstance(each, Prepared) else type(each).__name__
                raise ValueError(f"expected what {self} has prepared, got {got}: call its prepare(X)")
            if each.device != prepared[0].device:
                raise ValueError(
                    f"{self.id}: expected representations on one device, got {prepared[0].device} and "
                    f"{each.device}: move them together"
                )
            self._check_pair(prepared[0], each)

    def _inputs(self, name: str, values: Mapping[str, Any]) -> dict[str, Tensor]:
        """One representation's inputs as float tensors of the same N rows on one device."""
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
class Statistic(Measure):
    """A number describing one representation; two of them are compared by its absolute difference.

    `_prepare` returns that number as a 0-d tensor or float.
    """

    larger_is_more_similar = False
    range = (0.0, float("inf"))

    def _compare(self, a: Any, b: Any) -> Tensor | float:
        return abs(a - b)

    def describe(self, X: Any, labels: Any = None, **extra: Any) -> float:
        """The statistic of X (N, D); raises as `prepare`, NaN with an UndefinedWarning where undefined."""
        value = float(self.prepare(X, labels, **extra).data)
        if np.isnan(value):
            self._warn("here")
        return value


def _require_finite(id: str, inputs: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Refuse NaN, infinity and sums that overflow: one cheap sum per tensor, one round trip per device."""
    tensors = [(name, key, rows) for name, values in inputs.items() for key, rows in values.items()]
    by_device: dict[torch.device, list[Tensor]] = {}
    for _, _, rows in tensors:
        by_device.setdefault(rows.device, []).append(rows.sum().double())
    if all(torch.stack(sums).isfinite().all() for sums in by_device.values()):
        return
    for name, key, rows in tensors:
        bad = int((~rows.isfinite()).sum())
        if bad:
            raise ValueError(f"{id}: {_label(name, key)} must be finite, got {bad} NaN or infinite entries")
        if not rows.sum().isfinite():
            raise ValueError(f"{id}: {_label(name, key)} is too large for {rows.dtype}: scale it down")


def _label(name: str, key: str) -> str:
    return name if key == "X" else f"{key} of {name}"


def _labels(id: str, labels: Any, X: Tensor) -> Tensor:
    if labels is None:
        raise ValueError(f"{id} needs labels: pass labels=, one integer per row")
    classes = torch.as_tensor(labels)
    if classes.ndim != 1 or len(classes) != len(X) or classes.is_floating_point() or classes.is_complex():
        raise ValueError(f"{id}: labels must be {len(X)} integers, got shape {tuple(classes.shape)} of {classes.dtype}")
    return classes.to(X.device, torch.int64)
