"""Layer-wise drift: how far the outputs of the blocks that were kept have moved from the original's."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from simprune import measures
from simprune.checks.intervals import Interval, bootstrap_mean, narrowed, together
from simprune.core.batches import call, checked
from simprune.functional import Bounds, Gathered, Score
from simprune.functional._models import ModelMeasure
from simprune.structures import find_blocks
from simprune.trace.bypass import Bypass
from simprune.trace.capture import watching
from simprune.trace.context import evaluation
from simprune.trace.network import Network
from simprune.trace.sites import Site


@dataclass(frozen=True)
class BlockDrift(ModelMeasure):
    """Largest drift of a kept block, 1 - similarity of its outputs in both models; 0 means all as before.

    A block's drift is the mean over groups of `inputs` test inputs, so memory is bounded and groups are the samples of
    its bounds; outputs are averaged over positions. `measure`: one of `simprune.measures` where larger is more similar
    and equal is 1. ValueError for another, or for less than 8 inputs.
    """

    measure: str = "cka_debiased"
    inputs: int = 64

    id = "block_drift"
    range = (-math.inf, math.inf)
    gate = True
    source = "Kornblith et al. (2019), arXiv 1905.00414, as a distance"

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen = measures.get(self.measure)
        if not chosen.larger_is_more_similar or chosen.range[1] != 1:
            raise ValueError(f"block_drift needs a similarity that is 1 for equal outputs; {self.measure} is none")
        if self.inputs < 8:
            raise ValueError(f"block_drift: groups of at least 8 inputs are needed; got inputs={self.inputs}")

    def group(self, models: Sequence[nn.Module], inputs: Any, labels: Any = None) -> Score:
        """Score of the original and the pruned model on test inputs; labels are not used."""
        model, small = self._checked(models)
        return self.reduce(self.gather(model, small, inputs).rows)

    def gather(self, model_a: nn.Module, model_b: nn.Module, batches: Any) -> Gathered:
        """Drift (groups, blocks), one pass over the batches. ValueError when no block was kept, or for few inputs."""
        model, small, test = model_a, model_b, batches
        blocks = kept_blocks(model, small, next(iter(checked(test, "test"))))
        measure = measures.get(self.measure)
        rows = [
            torch.tensor([1 - float(measure(a[name], b[name])) for name in blocks], dtype=torch.float64)
            for a, b in self._groups(model, small, test, blocks)
        ]
        if not rows:
            raise ValueError(f"block_drift needs at least {self.inputs} test inputs; give more or set options.inputs")
        return Gathered(torch.stack(rows), blocks)

    def bounds(self, rows: Tensor, strata: np.ndarray, seed: int) -> tuple[Bounds, str]:
        """Of the largest block's mean over groups of inputs, by the bootstrap."""
        single = np.zeros(len(rows), dtype=np.int64)

        def of(values: np.ndarray) -> Bounds:
            value, same = float(values.mean()), bool(np.ptp(values) < 1e-12)
            drawn = cache(lambda level: bootstrap_mean(values, single, level, seed))

            def bounds(scale: float, level: float) -> Interval:
                if len(values) == 1:
                    return -math.inf, math.inf
                return (value, value) if same else narrowed(value, drawn(level), scale)

            return bounds

        blocks = [of(column) for column in rows.numpy().T]

        def worst(scale: float, level: float) -> Interval:
            lower = max(block(scale, together(level, len(blocks)))[0] for block in blocks)
            return lower, max(block(scale, level)[1] for block in blocks)

        return worst, f"bootstrap over {len(rows)} groups of inputs"

    def reduce(self, rows: Tensor) -> Score:
        means = rows.mean(0)
        if means.isnan().any():
            return self._undefined(rows, "some block's outputs have no similarity: they are constant")
        return Score(means.max().item(), count=len(rows), details={"drift": means.tolist()})

    def _groups(
        self, model: nn.Module, small: nn.Module, test: Iterable, blocks: tuple[str, ...]
    ) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """Outputs of all blocks in both models on every whole group of inputs."""
        sites = [Site(name) for name in blocks]
        parts: tuple[dict[str, list[Tensor]], ...] = ({name: [] for name in blocks}, {name: [] for name in blocks})

        def keep(kept: dict[str, list[Tensor]]):
            return lambda site, value: kept[site.name].append(site.rows(value).double().cpu().clone())

        with (
            evaluation(model, small),
            watching(model, sites, keep(parts[0])),
            watching(small, sites, keep(parts[1])),
        ):
            for batch in checked(test, "test"):
                for network in (model, small):
                    call(network, batch)
                joined = [{name: torch.cat(rows) for name, rows in kept.items()} for kept in parts]
                count = len(joined[0][blocks[0]])
                for start in range(0, count - self.inputs + 1, self.inputs):
                    a, b = ({name: x[start : start + self.inputs] for name, x in one.items()} for one in joined)
                    yield a, b
                rest = count - count % self.inputs
                for kept, one in zip(parts, joined, strict=True):
                    kept.update({name: [x[rest:]] for name, x in one.items()})


def kept_blocks(model: nn.Module, small: nn.Module, batch: Any) -> tuple[str, ...]:
    """Names of the original's blocks that the pruned model still has, in order; ValueError when there is none."""
    found = find_blocks(Network.trace(model, batch))
    modules = dict(small.named_modules())
    names = tuple(b.name for b in found if b.name in modules and not isinstance(modules[b.name], Bypass | nn.Identity))
    if not names:
        raise ValueError("block_drift: no block of the original is found in the pruned model; choose another check set")
    return names
