"""Similarity of representations: `get(id)`, `names()`, `matrix(id, {name: X})`.

Every module of this package is imported here, so a measure exists as soon as its dataclass does.
"""

import dataclasses
import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from simprune.measures._base import Measure, Prepared, UndefinedWarning, _registry

__all__ = ["Measure", "Prepared", "SimilarityMatrix", "UndefinedWarning", "classes", "get", "matrix", "names"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


@dataclass(frozen=True, eq=False)
class SimilarityMatrix:
    """Values (L, L) of one measure for all pairs of L named representations; read-only float64.

    >>> SimilarityMatrix(("a", "b"), np.eye(2), "cka")
    SimilarityMatrix cka
             a      b
    a    1.000  0.000
    b    0.000  1.000
    """

    names: tuple[str, ...]
    values: np.ndarray = field(repr=False)
    measure: str = ""

    def __post_init__(self) -> None:
        values = np.array(self.values, dtype=np.float64)
        if values.shape != (len(self.names), len(self.names)):
            raise ValueError(f"expected one row and column per name ({len(self.names)}), got {values.shape}")
        values.flags.writeable = False
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "values", values)

    def table(self) -> str:
        """The matrix as text, three decimals."""
        first = max(map(len, self.names))
        widths = [max(len(name), 7) for name in self.names]
        head = " " * first + "".join(f"{name:>{w + 2}}" for name, w in zip(self.names, widths, strict=True))
        lines = [
            f"{name:<{first}}" + "".join(f"{v:>{w + 2}.3f}" for v, w in zip(row, widths, strict=True))
            for name, row in zip(self.names, self.values, strict=True)
        ]
        return "\n".join([head, *lines])

    def __repr__(self) -> str:
        return f"SimilarityMatrix {self.measure}\n{self.table()}"


def classes() -> dict[str, type[Measure]]:
    """Every measure's dataclass by id, sorted.

    >>> classes()["cka"].__name__
    'CKA'
    """
    return dict(sorted(_registry.items()))


def names() -> list[str]:
    """Ids of all measures, sorted.

    >>> "cka_debiased" in names()
    True
    """
    return list(classes())


def get(id: str, **hyper: Any) -> Measure:
    """The measure `id` with these hyperparameters.

    Raises KeyError for an unknown id, naming the nearest, and ValueError for unknown or bad hyperparameters.

    >>> get("cka_rbf", threshold=0.4)
    CKARBF(threshold=0.4, debiased=False)
    """
    if id not in _registry:
        near = difflib.get_close_matches(str(id), names(), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names())}"
        raise KeyError(f"no measure is called {id!r}; {hint}")
    cls = _registry[id]
    known = {each.name: each for each in dataclasses.fields(cls)}
    required = [
        name
        for name, each in known.items()
        if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
    ]
    unknown = [name for name in hyper if name not in known]
    missing = [name for name in required if name not in hyper]
    if unknown or missing:
        problem = f"does not take {', '.join(unknown)}" if unknown else f"needs {', '.join(missing)}"
        raise ValueError(f"{id} {problem}; its hyperparameters: {', '.join(known) or 'none'}")
    return cls(**hyper)


def matrix(
    measure: str | Measure, representations: Mapping[str, Any], labels: Any = None, **options: Any
) -> SimilarityMatrix:
    """Values for all pairs of representations {name: X (N, D)}: one `prepare` each, then all pairs together.

    A value may also be a dict of the arguments of `prepare`, or already prepared. `options` are
    hyperparameters (with an id) or inputs common to all representations (the measure's `extras`).
    Raises as `get`, `prepare` and `compare` do.

    >>> X = np.random.default_rng(0).normal(size=(10, 3))
    >>> matrix("cka", {"a": X, "b": 2 * X + 1}).values.round(6).tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """
    source = _registry.get(measure) if isinstance(measure, str) else measure
    common = {name: options.pop(name) for name in (source.extras if source else ()) if name in options}
    if isinstance(measure, str):
        measure = get(measure, **options)
    elif options:
        raise ValueError(f"{measure} has its hyperparameters already; pass an id to set {', '.join(options)}")
    layers = tuple(representations)
    values = measure.matrix(measure.prepare_all(representations, labels, **common), layers)
    return SimilarityMatrix(layers, values, measure.id)
