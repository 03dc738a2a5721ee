"""Runs of similar layers: blocks within a run are redundant, blocks between two runs are not.

`segments` takes the runs from Fisher's optimal partition of the ordered layer-similarity matrix (SGLP, Wang et al.
2024), which dynamic programming finds exactly. `clusters` begins a new run where a layer is less similar to the first
layer of the run than a threshold (MPruner, Hu et al. 2024), and can thin runs out instead of removing all but one.
"""

import numpy as np

from simprune.core.registry import register
from simprune.scores.blocks._context import BlockContext


@register("block_score", "segments", source="SGLP 2024")
def segments(context: BlockContext, *, segments: int | None = None, explained: float = 0.9) -> dict[str, float]:
    """Whether a block lies within a segment of similar layers (0.5 + s / 2) or between two segments (s / 2).

    s is the similarity of the block's input and output. `segments`: how many; None takes the fewest that explain the
    share `explained` of the variance of the rows of the similarity matrix. O(segments x points^2 + points^3).
    """
    values = context.similarities()
    if segments is None:
        segments = segment_count(values, explained)
    return _scores(context, values, fisher_partition(values, segments))


@register("block_score", "clusters", source="MPruner 2024, arXiv:2408.13482")
def clusters(context: BlockContext, *, threshold: float = 0.98, granularity: int = 1) -> dict[str, float]:
    """Whether a block lies within a run of layers that are at least `threshold` similar to the first of the run.

    Such a block scores 0.5 + s / 2 and any other s / 2, where s is the similarity of its input and output.
    `granularity`: MPruner's step in which runs are thinned out. With 1, all blocks within a run count; with k, the
    first of them and every k-th one after it, while the others score as blocks between two runs.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"clusters: threshold must be in [0, 1]; got {threshold!r}")
    if granularity < 1:
        raise ValueError(f"clusters: granularity must be a whole number from 1; got {granularity!r}")
    values = context.similarities()
    return _scores(context, values, runs(values, threshold), granularity)


def runs(values: np.ndarray, threshold: float) -> list[int]:
    """Ends (exclusive) of the runs; a new run begins where a point is less than `threshold` similar to the run's first.

    >>> runs(np.array([[1.0, 0.9, 0.7], [0.9, 1.0, 0.9], [0.7, 0.9, 1.0]]), 0.8)
    [2, 3]
    """
    starts = [0]
    for point in range(1, len(values)):
        if values[starts[-1], point] < threshold:
            starts.append(point)
    return [*starts[1:], len(values)]


def segment_count(values: np.ndarray, explained: float = 0.9) -> int:
    """Fewest segments whose means explain this share of the variance of the rows."""
    if not 0 < explained <= 1:
        raise ValueError(f"segments: explained must be a share in (0, 1]; got {explained!r}")
    unexplained = (1 - explained) * within(values, [len(values)]) + 1e-12
    counts = range(1, len(values) + 1)
    return next(count for count in counts if within(values, fisher_partition(values, count)) <= unexplained)


def fisher_partition(values: np.ndarray, count: int) -> list[int]:
    """Ends (exclusive) of the `count` consecutive segments of rows with the least squared distance to their means.

    Exact: cost O(count L^2) after O(L^3) for the diameters. ValueError for a count outside 1..L.

    >>> fisher_partition(np.array([[0.0], [0.1], [5.0], [5.1], [9.0]]), 3)
    [2, 4, 5]
    """
    size = len(values)
    if not 1 <= count <= size:
        raise ValueError(f"segments must be from 1 to {size}, the number of points; got {count!r}")
    diameter = np.full((size + 1, size + 1), np.inf)
    for start in range(size):
        for stop in range(start + 1, size + 1):
            diameter[start, stop] = _spread(values[start:stop])
    best = np.full((count + 1, size + 1), np.inf)
    cut = np.zeros((count + 1, size + 1), dtype=int)
    best[0, 0] = 0.0
    for number in range(1, count + 1):
        for stop in range(number, size + 1):
            losses = best[number - 1, :stop] + diameter[:stop, stop]
            cut[number, stop] = int(losses.argmin())
            best[number, stop] = losses.min()
    ends, stop = [], size
    for number in range(count, 0, -1):
        ends.append(stop)
        stop = int(cut[number, stop])
    return ends[::-1]


def within(values: np.ndarray, ends: list[int]) -> float:
    """Sum of squared distances of the rows to their segments' means."""
    return sum(_spread(values[a:b]) for a, b in zip([0, *ends], ends, strict=False))


def _spread(rows: np.ndarray) -> float:
    return float(np.square(rows - rows.mean(0)).sum())


def _scores(context: BlockContext, values: np.ndarray, ends: list[int], granularity: int = 1) -> dict[str, float]:
    row = {point: index for index, point in enumerate(context.stream.rows)}
    starts = [0, *ends[:-1]]
    segment = np.searchsorted(ends, np.arange(len(values)), side="right")
    scores = {}
    for name, (before, after) in context.stream.ends.items():
        a, b = row[before], row[after]
        redundant = segment[a] == segment[b] and (b - starts[segment[b]] - 1) % granularity == 0
        scores[name] = 0.5 * redundant + values[a, b] / 2
    return scores
