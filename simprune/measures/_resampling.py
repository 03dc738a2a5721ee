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
from simprune.measures._base import DegenerateWarning, Measure, Prepared, Statistic, UndefinedWarning, class_labels

QUANTILES = {"2.5%": 0.025, "50%": 0.5, "97.5%": 0.975}


class Resampling:
    """The rows behind a matrix of similarities, to draw inputs from.

    Args:
        measure: the measure of the matrix.
        representations, labels, common: the arguments of `prepare_all`.
        seed: of all draws.
        inputs: number of inputs to choose at random and draw from; None for all.

    Raises:
        ValueError: for a prepared representation, whose rows are gone, and where `inputs` is too small.
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
            self.rows[name] = measure._inputs(name, value, common)
            if measure.needs_labels:
                self.rows[name]["labels"] = class_labels(measure.id, labels, self.rows[name]["X"])
        self.total = self.inputs = len(next(iter(self.rows.values()))["X"])
        if inputs is not None and inputs < self.total:
            if inputs < 2 * measure.minimum_rows:
                raise ValueError(f"resample_inputs must be at least {2 * measure.minimum_rows}, got {inputs}")
            self._require_same_inputs("resample_inputs")
            chosen = torch.randperm(self.total, generator=torch.Generator().manual_seed(seed))[:inputs]
            self.rows = {name: _drawn(rows, chosen) for name, rows in self.rows.items()}
            self.inputs = inputs

    def _require_same_inputs(self, what: str) -> None:
        counts = {len(rows["X"]) for rows in self.rows.values()}
        if len(counts) > 1:
            raise ValueError(f"{what} draws the same inputs everywhere: expected equal numbers of rows, got {counts}")

    def null(self, kind: str, repeats: int, values: np.ndarray) -> Null:
        """Statistics of `repeats` matrices (L, L) of shuffled inputs; the diagonal compares rows with them shuffled."""
        if kind != "permuted":
            raise ValueError(f'null must be "permuted", got {kind!r}')
        if repeats < 1:
            raise ValueError(f"repeats must be at least 1, got {repeats}")
        if isinstance(self.measure, Statistic):
            raise ValueError(f"{self.measure.id} describes one representation: the pairing of inputs has no part in it")
        generator = torch.Generator().manual_seed(self.seed)
        with warnings.catch_warnings():
            _ignore_repeated_warnings()
            paired = [self.measure.prepare(**rows) for rows in self.rows.values()]
            drawn = []
            for _ in range(repeats):
                shuffled = [
                    self.measure.prepare(**_drawn(rows, torch.randperm(len(rows["X"]), generator=generator)))
                    for rows in self.rows.values()
                ]
                matrix = self.measure.matrix(shuffled)
                np.fill_diagonal(matrix, list(map(self.measure.compare, paired, shuffled)))
                drawn.append(matrix)
        chance = np.stack(drawn)
        as_similar = chance >= values if self.measure.larger_is_more_similar else chance <= values
        p_value = np.where(np.isnan(values), np.nan, (1 + as_similar.sum(0)) / (1 + repeats))
        quantiles = {name: np.quantile(chance, level, axis=0) for name, level in QUANTILES.items()}
        return Null(chance.mean(0), quantiles, p_value, repeats, self.inputs)

    def interval(self, resamples: int, values: np.ndarray) -> Interval:
        """Bounds around `values`, within the measure's range."""
        if resamples < 2:
            raise ValueError(f"bootstrap must be at least 2 resamples, got {resamples}")
        self._require_same_inputs("bootstrap")
        count = self.inputs
        generator = torch.Generator().manual_seed(self.seed)
        with warnings.catch_warnings():
            _ignore_repeated_warnings()
            drawn = []
            for _ in range(resamples):
                half = torch.randperm(count, generator=generator)[: count // 2]
                halves = [self.measure.prepare(**_drawn(rows, half)) for rows in self.rows.values()]
                drawn.append(self.measure.matrix(halves))
        spread = np.stack(drawn)
        spread = (spread - spread.mean(0)) * (count / self.total) ** 0.5  # that of all inputs is narrower
        low, high = (np.quantile(spread, level, axis=0) + values for level in (0.025, 0.975))
        return Interval(np.clip(low, *self.measure.range), np.clip(high, *self.measure.range), resamples, count)


def _drawn(rows: Mapping[str, Tensor], index: Tensor) -> dict[str, Tensor]:
    """Rows at `index` (n,) of every input of one representation."""
    return {name: values[index.to(values.device)] for name, values in rows.items()}


def _ignore_repeated_warnings() -> None:
    """The matrix itself has warned already."""
    for category in (UndefinedWarning, DegenerateWarning):
        warnings.simplefilter("ignore", category)
