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

    Args:
        id: one of `names()`.
        hyper: hyperparameters, fields of the measure's dataclass.

    Raises:
        KeyError: for an unknown id; the message names the nearest.
        ValueError: for an unknown, missing or bad hyperparameter.

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
    """Values for all pairs of representations: one `prepare` per representation, then all pairs together.

    Args:
        measure: an id, or a measure with its hyperparameters.
        representations: X (N, D) by name; or a dict of the arguments of `prepare`, or what `prepare` returned.
        labels: (N,) integers, for a measure that needs them.
        null: "permuted" adds `.null`, the values after every representation's inputs are shuffled on their own: the
            score of unrelated representations of these widths.
        bootstrap: number of random halves of the inputs; above 0 it adds `.interval`.
        repeats: number of shuffles for `null`, 100 if None; without `null`, the measure's hyperparameter.
        seed: of shuffles and halves, 0 if None, and of a measure that has a seed.
        resample_inputs: number of inputs, drawn once, that shuffles and halves choose from; chance is then that of so
            few inputs, and the interval is scaled to all.
        options: hyperparameters (with an id), and inputs that all representations share (the measure's `extras`).

    Returns:
        The values (L, L) with the names; `null` and `bootstrap` compute them once more per shuffle or half.

    Raises:
        KeyError: as `get`.
        ValueError: as `get`, `prepare` and `compare`; for `null` or `bootstrap` of what is prepared already.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(10, 3))
    >>> matrix("cka", {"a": X, "b": 2 * X + 1}).values.round(6).tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    >>> bool(matrix("cka", {"a": X, "b": 2 * X + 1}, null="permuted", repeats=19).null.p_value[0, 1] == 0.05)
    True
    """
    source = classes().get(measure) if isinstance(measure, str) else measure
    common = {name: options.pop(name) for name in (source.extras if source else ()) if name in options}
    own = {field.name for field in dataclasses.fields(source)} if isinstance(measure, str) and source else set()
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
    """An accumulator of moments of representations, for one measure or several that share it.

    `update` it with batches of rows, `merge` it with another one, then ask for `matrix()`: the value of all rows at
    once, up to rounding, without storing them.

    Args:
        measures: ids, or measures with their hyperparameters.
        names: of the representations.
        limit_bytes: the first update raises ValueError if the moments, 8 bytes x (sum of widths)^2, need more.
        hyper: hyperparameters of the one id.

    Raises:
        ValueError: for a measure that has no such form, for equal names, and for hyperparameters without one id.

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
    chosen = [get(measure, **hyper) if isinstance(measure, str) else measure for measure in several]
    return Streaming(chosen, names, limit_bytes)
