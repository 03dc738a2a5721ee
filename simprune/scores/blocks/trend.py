"""A statistic along depth: blocks where it no longer rises are redundant (graph modularity, Lu et al. 2022 and 2023).

In the graph that connects every input with its nearest neighbours, modularity says how well the classes are separated.
Blocks that do not raise it do not separate the classes any further. Any descriptive measure can take its place; the
graph statistics need labels.
"""

from simprune import measures
from simprune.core.registry import register
from simprune.scores.blocks._context import BlockContext

FALL = 0.1  # a fall counts a tenth of a rise, so that a block that changes nothing at all comes first


@register("block_score", "trend", source="Lu et al. 2022 and 2023")
def trend(context: BlockContext, *, statistic: str = "graph_modularity") -> dict[str, float]:
    """1 - the rise of a statistic from a block's input to its output, as a share of the largest rise.

    A fall counts as a tenth of a rise of the same size. `statistic`: id of a descriptive measure. Raises ValueError
    when it needs labels that the batches do not have.
    """
    measure = measures.get(statistic)
    if measure.needs_labels and context.stream.labels is None:
        raise ValueError(f"trend: {statistic} needs labels, one integer per input; the calibration batches have none")
    labels = context.stream.labels if measure.needs_labels else None
    level = {point: measure.describe(rows, labels) for point, rows in context.stream.rows.items()}
    rise = {name: level[after] - level[before] for name, (before, after) in context.stream.ends.items()}
    change = {name: value if value >= 0 else -FALL * value for name, value in rise.items()}
    largest = max([value for value in change.values() if value == value] or [0.0]) or 1.0
    return {name: 0.0 if value != value else 1 - value / largest for name, value in change.items()}
