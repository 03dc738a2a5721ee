"""How far a similarity is from chance, and how far it would move with other inputs.

Chance: every representation's inputs are shuffled on their own, so nothing pairs them any more. Other inputs: random
halves without replacement. The spread of a half's value around the mean of halves is that of all inputs around the
truth, and unlike in a bootstrap with replacement no input appears twice; a copy would be its own nearest neighbour
and fill the kernel's off-diagonal with its diagonal (debiased CKA of wide unrelated representations: 0.0 becomes 0.8).
"""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simprune.core.similarity import Interval, Null
from simprune.measures._base import DegenerateWarning, Measure, Prepared, Statistic, UndefinedWarning, _labels

QUANTILES = {"2.5%": 0.025, "50%": 0.5, "97.5%": 0.975}


class Resampling:
    """The rows that `matrix` was given, to be drawn from; raises ValueError for what is already prepared.

    `inputs`: take that many of them, at random, and draw from those alone; None for all.
    """

    def __init__(
        self,
        measure: Measure,
        representations: Mapping[str, Any],
        labels: Any,
        common: Mapping[str, Any],
        seed: int,
        inputs: int | None = None,
    ):
        self.measure, self.seed = measure, seed
        self.rows: dict[str, dict[str, Tensor]] = {}
        for name, value in representations.items():
            if isinstance(value, Prepared):
                raise ValueError(f"{name} is prepared already: null and bootstrap need its rows")
            self.rows[name] = measure._inputs(
                name, {**common, **(value if isinstance(value, Mapping) else {"X": value})}
            )
        first = next(iter(self.rows.values()))["X"]
        self.labels = _labels(measure.id, labels, first) if measure.needs_labels else None
        self.total = self.inputs = len(first)
        if inputs is not None and inputs < self.total:
            self._take(inputs)

    def _take(self, inputs: int) -> None:
        if inputs < 2 * self.measure.minimum_rows:
            raise ValueError(f"resample_inputs must be at least {2 * self.measure.minimum_rows}, got {inputs}")
        self._same_inputs("resample_inputs")
        chosen = torch.randperm(self.total, generator=torch.Generator().manual_seed(self.seed))[:inputs]
        self.rows = {
            name: {key: each[chosen.to(each.device)] for key, each in values.items()}
            for name, values in self.rows.items()
        }
        self.labels = None if self.labels is None else self.labels[chosen.to(self.labels.device)]
        self.inputs = inputs

    def _same_inputs(self, what: str) -> None:
        counts = {len(each["X"]) for each in self.rows.values()}
        if len(counts) > 1:
            raise ValueError(f"{what} draws the same inputs everywhere: expected equal numbers of rows, got {counts}")

    def null(self, kind: str, repeats: int, values: np.ndarray) -> Null:
        """The values (repeats, L, L) without pairing; the diagonal compares each with itself shuffled."""
        if kind != "permuted":
            raise ValueError(f'null must be "permuted", got {kind!r}')
        if repeats < 1:
            raise ValueError(f"repeats must be at least 1, got {repeats}")
        if isinstance(self.measure, Statistic):
            raise ValueError(f"{self.measure.id} describes one representation: the pairing of inputs has no part in it")
        generator = torch.Generator().manual_seed(self.seed)
        with warnings.catch_warnings():
            _ignore_what_was_said()
            paired = [self._prepare(name) for name in self.rows]
            drawn = []
            for _ in range(repeats):
                shuffled = [
                    self._prepare(name, torch.randperm(each.rows, generator=generator))
                    for name, each in zip(self.rows, paired, strict=True)
                ]
                found = self.measure.matrix(shuffled)
                for k, (one, other) in enumerate(zip(paired, shuffled, strict=True)):
                    found[k, k] = self.measure.compare(one, other)
                drawn.append(found)
        chance = np.stack(drawn)
        as_similar = chance >= values if self.measure.larger_is_more_similar else chance <= values
        p_value = np.where(np.isnan(values), np.nan, (1 + as_similar.sum(0)) / (1 + repeats))
        quantiles = {name: np.quantile(chance, level, axis=0) for name, level in QUANTILES.items()}
        return Null(chance.mean(0), quantiles, p_value, repeats, self.inputs)

    def interval(self, resamples: int, values: np.ndarray) -> Interval:
        """Bounds around `values`, within the measure's range."""
        if resamples < 2:
            raise ValueError(f"bootstrap must be at least 2 resamples, got {resamples}")
        self._same_inputs("bootstrap")
        count = self.inputs
        generator = torch.Generator().manual_seed(self.seed)
        with warnings.catch_warnings():
            _ignore_what_was_said()
            drawn = []
            for _ in range(resamples):
                half = torch.randperm(count, generator=generator)[: count // 2]
                drawn.append(self.measure.matrix([self._prepare(name, half) for name in self.rows]))
        spread = np.stack(drawn)
        spread = (spread - spread.mean(0)) * (count / self.total) ** 0.5  # that of all inputs is narrower
        low, high = (np.quantile(spread, level, axis=0) + values for level in (0.025, 0.975))
        return Interval(np.clip(low, *self.measure.range), np.clip(high, *self.measure.range), resamples, count)

    def _prepare(self, name: str, index: Tensor | None = None) -> Prepared:
        def drawn(rows: Tensor) -> Tensor:
            return rows if index is None else rows[index.to(rows.device)]

        labels = None if self.labels is None else drawn(self.labels)
        return self.measure.prepare(labels=labels, **{key: drawn(each) for key, each in self.rows[name].items()})


def _ignore_what_was_said() -> None:
    """The matrix itself has warned already."""
    for category in (UndefinedWarning, DegenerateWarning):
        warnings.simplefilter("ignore", category)
