"""Similarity of representations: `get(id)`, `names()`, `matrix(id, {name: X})`.

A measure is in the registry (`simprune.core.registry`, kind "measure") as soon as its dataclass exists.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from simprune.core import registry
from simprune.core.similarity import Interval, Null, SimilarityMatrix
from simprune.measures._base import DegenerateWarning, Measure, Prepared, UndefinedWarning
from simprune.measures._resampling import Resampling
from simprune.measures._streaming import Streaming

__all__ = [
    "DegenerateWarning",
    "Interval",
    "Measure",
    "Null",
    "Prepared",
    "SimilarityMatrix",
    "Streaming",
    "UndefinedWarning",
    "classes",
    "get",
    "matrix",
    "names",
    "streaming",
]


def classes() -> dict[str, type[Measure]]:
    """Every measure's dataclass by id, sorted.

    >>> classes()["cka"].__name__
    'CKA'
    """
    return {id: part.make for id, part in registry.parts("measure").items()}  # pyright: ignore[reportReturnType]


def names() -> list[str]:
    """Ids of all measures, sorted.

    >>> "cka_debiased" in names()
    True
    """
    return list(registry.parts("measure"))


def get(id: str, **hyper: Any) -> Measure:
    """The measure `id` with these hyperparameters.

    Raises KeyError for an unknown id, naming the nearest, and ValueError for unknown or bad hyperparameters.

    >>> get("cka_rbf", threshold=0.4)
    CKARBF(threshold=0.4, debiased=False)
    """
    part = registry.find("measure", id)
    registry.check_options(part, hyper)
    return part.make(**hyper)


def matrix(
    measure: str | Measure,
    representations: Mapping[str, Any],
    labels: Any = None,
    *,
    null: str | None = None,
    bootstrap: int = 0,
    repeats: int | None = None,
    seed: int | None = None,
    resample_inputs: int | None = None,
    **options: Any,
) -> SimilarityMatrix:
    """Values for all pairs of representations {name: X (N, D)}: one `prepare` each, then all pairs together.

    A value may also be a dict of the arguments of `prepare`, or already prepared. `options` are
    hyperparameters (with an id) or inputs common to all representations (the measure's `extras`).

    `null="permuted"` adds `.null`, the values after shuffling inputs apart, `repeats` times (100): what unrelated
    representations of these widths would score. `bootstrap=B` adds `.interval` from B random halves of the inputs.
    Both compute the matrix that many times, equal for equal `seed` (0), which a measure's own `seed` follows; with
    `resample_inputs` from that many inputs, drawn once: chance is that of so few, the interval is scaled to all.
    Raises as `get`, `prepare` and `compare` do.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(10, 3))
    >>> matrix("cka", {"a": X, "b": 2 * X + 1}).values.round(6).tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    >>> bool(matrix("cka", {"a": X, "b": 2 * X + 1}, null="permuted", repeats=19).null.p_value[0, 1] == 0.05)
    True
    """
    source = classes().get(measure) if isinstance(measure, str) else measure
    common = {name: options.pop(name) for name in (source.extras if source else ()) if name in options}
    own = {each.name for each in dataclasses.fields(source)} if isinstance(measure, str) and source else set()
    if seed is not None and ("seed" in own or not (null or bootstrap)):
        options["seed"] = seed
    if repeats is not None and ("repeats" in own or not null):
        if null:
            raise ValueError(f"{measure} has repeats of its own: pass get({measure!r}, repeats=...) to set those")
        options["repeats"] = repeats
    if isinstance(measure, str):
        measure = get(measure, **options)
    elif options:
        raise ValueError(f"{measure} has its hyperparameters already; pass an id to set {', '.join(options)}")
    layers = tuple(representations)
    values = measure.matrix(measure.prepare_all(representations, labels, **common), layers)
    result = SimilarityMatrix(layers, values, measure.id)
    if null or bootstrap:
        sample = Resampling(measure, representations, labels, common, seed or 0, resample_inputs)
        if null:
            result = dataclasses.replace(result, null=sample.null(null, 100 if repeats is None else repeats, values))
        if bootstrap:
            result = dataclasses.replace(result, interval=sample.interval(bootstrap, values))
    return result


def streaming(
    measures: str | Measure | Iterable[str | Measure], names: Iterable[str], limit_bytes: int = 4 * 2**30, **hyper: Any
) -> Streaming:
    """An accumulator for one measure, or several that share it, over representations called `names`.

    `update` it with batches of rows, `merge` it with another's, then ask for `matrix()`: the value of all rows
    at once, up to rounding, without keeping them. Raises ValueError for a measure that has no such form, and on
    the first update if the moments (8 bytes x (sum of widths)^2) exceed `limit_bytes`.

    >>> import torch
    >>> X = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    >>> acc = streaming(["cka", "mean_cca"], ["a", "b"])
    >>> for rows in X.split(32):
    ...     _ = acc.update({"a": rows, "b": rows @ torch.ones(3, 2).tril()})
    >>> round(acc.value("a", "b", "mean_cca"), 6)
    1.0
    """
    several = [measures] if isinstance(measures, str | Measure) else list(measures)
    if hyper and not (len(several) == 1 and isinstance(several[0], str)):
        raise ValueError(f"{', '.join(hyper)}: hyperparameters go with one id; pass get(id, ...) for several measures")
    return Streaming([get(each, **hyper) if isinstance(each, str) else each for each in several], names, limit_bytes)
