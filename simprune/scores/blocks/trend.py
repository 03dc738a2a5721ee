"""A statistic along depth: where it no longer rises, blocks are redundant (graph modularity, Lu et al. 2022 and 2023).

A plateau or a fall of the modularity of the graph of nearest inputs marks blocks that do not separate the classes any
further. Any descriptive measure works; the graph statistics need labels.
"""

from simprune import measures
from simprune.core.registry import register
from simprune.scores.blocks._context import BlockContext

FALL = 0.1  # a fall counts a tenth of a rise, so that a block that changes nothing at all comes first


@register("block_score", "trend")
def trend(context: BlockContext, *, statistic: str = "graph_modularity") -> dict[str, float]:
    """1 - the block's rise of the statistic as a share of the largest; a fall counts a tenth."""
    measure = measures.get(statistic)
    if measure.needs_labels and context.stream.labels is None:
        raise ValueError(f"trend: {statistic} needs labels, one integer per input; the calibration batches have none")
    labels = context.stream.labels if measure.needs_labels else None
    level = {point: measure.describe(rows, labels) for point, rows in context.stream.rows.items()}
    rise = {name: level[after] - level[before] for name, (before, after) in context.stream.ends.items()}
    change = {name: value if value >= 0 else -FALL * value for name, value in rise.items()}
    largest = max([value for value in change.values() if value == value] or [0.0]) or 1.0
    return {name: 0.0 if value != value else 1 - value / largest for name, value in change.items()}
