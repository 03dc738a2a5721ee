"""Layer-wise drift: how far the outputs of the blocks that were not removed have moved from the original's."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from simprune import measures
from simprune.checks.intervals import Interval, bootstrap_mean, narrowed, together
from simprune.core.batches import call, checked, mask_of
from simprune.functional import Bounds, Gathered, Score
from simprune.functional._models import GatheredMeasure
from simprune.structures import find_blocks
from simprune.trace.bypass import Bypass
from simprune.trace.capture import watching
from simprune.trace.context import evaluation
from simprune.trace.network import Network
from simprune.trace.sites import Site


@dataclass(frozen=True)
class BlockDrift(GatheredMeasure):
    """Largest drift of a block that was not removed, 1 - similarity of its outputs in both models; 0 means no change.

    A block's drift is the mean over groups of `inputs` test inputs, so memory is bounded and groups are the samples of
    its bounds; outputs are averaged over positions, without padding. `measure`: one of `simprune.measures` where larger
    is more similar and equal outputs have 1. ValueError for any other measure, or for less than 8 inputs.
    """

    measure: str = "cka_debiased"
    inputs: int = 64

    id = "block_drift"
    range = (-math.inf, math.inf)
    source = "Kornblith et al. (2019), arXiv 1905.00414, as a distance"

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen = measures.get(self.measure)
        if not chosen.larger_is_more_similar or chosen.range[1] != 1:
            raise ValueError(f"block_drift needs a similarity that is 1 for equal outputs; {self.measure} is none")
        if self.inputs < 8:
            raise ValueError(f"block_drift: groups of at least 8 inputs are needed; got inputs={self.inputs}")

    def gather(self, model_a: nn.Module, model_b: nn.Module, batches: Any) -> Gathered:
        """Drift (groups, blocks), one pass over the batches.

        Args:
            model_a: the original.
            model_b: the pruned model.
            batches: of test inputs.

        Raises:
            ValueError: when no block is left, or for fewer than `inputs` inputs.
        """
        test, modules = checked(batches, "test"), dict(model_b.named_modules())
        network = Network.trace(model_a, next(iter(test)))
        names = [block.name for block in find_blocks(network) if block.name in modules]
        blocks = tuple(name for name in names if not isinstance(modules[name], Bypass | nn.Identity))
        if not blocks:
            raise ValueError(
                "block_drift: no block of the original is found in the pruned model; choose another check set"
            )
        measure = measures.get(self.measure)
        rows = [
            [1 - float(measure(a[name], b[name])) for name in blocks]
            for a, b in self._groups(network, model_b, test, blocks)
        ]
        if not rows:
            raise ValueError(f"block_drift needs at least {self.inputs} test inputs; give more or set options.inputs")
        return Gathered(torch.tensor(rows, dtype=torch.float64), blocks)

    def bounds(self, rows: Tensor, strata: np.ndarray, seed: int) -> tuple[Bounds, str]:
        """Bounds of the largest block's mean over groups of inputs, by the bootstrap."""
        columns = rows.numpy().T

        @cache
        def drawn(block: int, level: float) -> Interval:
            return bootstrap_mean(columns[block], np.zeros(len(rows), dtype=np.int64), level, seed)

        def of_block(block: int, scale: float, level: float) -> Interval:
            if len(rows) == 1:
                return -math.inf, math.inf
            value = float(columns[block].mean())
            same = np.ptp(columns[block]) < 1e-12
            return (value, value) if same else narrowed(value, drawn(block, level), scale)

        def worst(scale: float, level: float) -> Interval:
            blocks = range(len(columns))
            lower = max(of_block(block, scale, together(level, len(blocks)))[0] for block in blocks)
            return lower, max(of_block(block, scale, level)[1] for block in blocks)

        return worst, f"bootstrap over {len(rows)} groups of inputs"

    def reduce(self, rows: Tensor) -> Score:
        means = rows.mean(0)
        if means.isnan().any():
            return self._undefined(rows, "some block's outputs have no similarity: they are constant")
        return Score(means.max().item(), count=len(rows), details={"drift": means.tolist()})

    def _groups(
        self, network: Network, small: nn.Module, test: Iterable, blocks: tuple[str, ...]
    ) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """Outputs of all blocks in both models on every whole group of inputs."""
        model, sites = network.model, [Site(name).located(network.axes) for name in blocks]
        original, pruned = ({name: torch.empty(0) for name in blocks} for _ in range(2))  # rows not yet in a group
        mask: Tensor | None = None  # of the batch that is running

        def append_to(rows: dict[str, Tensor], site: Site, value: Tensor) -> None:
            new = replace(site, mask=mask).rows(value).double().cpu()
            rows[site.name] = torch.cat([rows[site.name], new]) if len(rows[site.name]) else new.clone()

        with (
            evaluation(model, small),
            watching(model, sites, partial(append_to, original)),
            watching(small, sites, partial(append_to, pruned)),
        ):
            for batch in test:
                mask = mask_of(batch)
                call(model, batch)
                call(small, batch)
                while len(original[blocks[0]]) >= self.inputs:
                    a, b = ({name: x[: self.inputs] for name, x in rows.items()} for rows in (original, pruned))
                    yield a, b
                    for rows in (original, pruned):
                        rows.update({name: x[self.inputs :] for name, x in rows.items()})
