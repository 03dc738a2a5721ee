"""The depth of a network in numbers: what `simprune analyze` shows of layers and blocks, as data that JSON can hold."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from simprune.core.plain import finite
from simprune.measures import Measure, SimilarityMatrix
from simprune.scores.blocks._context import as_redundancy
from simprune.scores.blocks.segments import fisher_partition, segment_count
from simprune.scores.blocks.stream import POSITIONS
from simprune.scores.layers import Layers

READING = (
    "One row per input: the mean over its positions, padding left out. "
    f"Cosines and angles: position by position, at up to {POSITIONS} positions of every batch."
)


def describe_depth(
    layers: Layers,
    scores: dict[str, float],
    compared: Sequence[Measure],
    matrices: Sequence[SimilarityMatrix],
) -> dict[str, Any]:
    """Similarities of all layers by several measures, with chance levels and intervals; blocks, windows and segments.

    Args:
        layers: representations of L layers.
        scores: redundancy in [0, 1] by block, from which the suggested order of removal follows.
        compared: the measures.
        matrices: (L, L) similarities by these measures, see `simprune.scores.layers.similarity`. Segments follow from
            the first.
    """
    points, first = list(layers.rows), matrices[0]
    similar = np.vectorize(lambda value: as_redundancy(compared[0], value))(first.values)
    ends = fisher_partition(similar, segment_count(similar))
    segment = {point: int(np.searchsorted(ends, index, side="right")) for index, point in enumerate(points)}
    return finite(
        {
            "points": points,
            "rows": len(next(iter(layers.rows.values()))),
            "reading": READING,
            "similarity": [_matrix(*pair) for pair in zip(compared, matrices, strict=True)],
            "segments": {"measure": first.measure, "of": [segment[point] for point in points]},
            "blocks": _blocks(layers, scores, matrices, segment),
            "windows": [
                {
                    "blocks": [block.name for block in chain.blocks],
                    "distances": [chain.distances(n).tolist() for n in range(1, len(chain.blocks) + 1)],
                }
                for chain in layers.stream.chains
            ],
            "cost": layers.costs.total().to_dict(),
        }
    )


def compare_models(first: Layers, second: Layers, compared: Sequence[Measure]) -> dict[str, Any]:
    """Similarities of every layer of one network with every layer of another, by several measures, on the same inputs.

    `values` of a measure are (layers of the first, layers of the second).
    """
    by_measure = []
    for measure in compared:
        a, b = (measure.prepare_all(layers.rows, first.stream.labels_for(measure)) for layers in (first, second))
        values = [[measure.compare(layer, other) for other in b] for layer in a]
        by_measure.append({"measure": measure.id, "values": values})
    return finite({"points": list(second.rows), "similarity": by_measure, "cost": second.costs.total().to_dict()})


def _matrix(measure: Measure, matrix: SimilarityMatrix) -> dict[str, Any]:
    description: dict[str, Any] = {
        "measure": matrix.measure,
        "larger_is_more_similar": measure.larger_is_more_similar,
        "values": _rounded(matrix.values),
    }
    resampled = matrix.null or matrix.interval
    if resampled is not None:
        description["resampled_inputs"] = resampled.inputs
    if matrix.null is not None:
        high = matrix.null.quantiles["97.5%" if measure.larger_is_more_similar else "2.5%"]
        description |= {"null_mean": _rounded(matrix.null.mean), "null_bound": _rounded(high)}
    if matrix.interval is not None:
        description |= {"low": _rounded(matrix.interval.low), "high": _rounded(matrix.interval.high)}
    return description


def _entry(matrix: SimilarityMatrix, row: int, column: int) -> dict[str, float]:
    """The similarity of two points, its interval and its chance level."""
    arrays = {"value": matrix.values}
    if matrix.interval is not None:
        arrays |= {"low": matrix.interval.low, "high": matrix.interval.high}
    if matrix.null is not None:
        arrays["null"] = matrix.null.mean
    return {name: float(values[row, column]) for name, values in arrays.items()}


def _rounded(values: np.ndarray) -> list[list[float]]:
    return np.round(values, 6).tolist()


def _blocks(
    layers: Layers, scores: dict[str, float], matrices: Sequence[SimilarityMatrix], segment: dict[str, int]
) -> list[dict[str, Any]]:
    """One entry per block: the similarity of its input and output, its costs, redundancy and order of removal."""
    row = {point: index for index, point in enumerate(layers.rows)}
    total = layers.costs.total()
    blocks = []
    for chain in layers.stream.chains:
        for index, block in enumerate(chain.blocks):
            before, after = chain.points[index], chain.points[index + 1]
            a, b = row[before], row[after]
            remaining = layers.costs.after(dropped=[block.name])
            blocks.append(
                {
                    "name": block.name,
                    "point": b,
                    "chain": block.chain,
                    "replace": block.replace,
                    "inside": block.inside,
                    "segment": segment[after],
                    "macs": total.macs - remaining.macs,
                    "params": total.params - remaining.params,
                    "share": 1 - remaining.macs / max(total.macs, 1),
                    "similarity": {matrix.measure: _entry(matrix, a, b) for matrix in matrices},
                    "influence": 1 - float(chain.cosine[index, index + 1]),
                    "angle": float(chain.angle[index, index + 1]),
                    "redundancy": scores[block.name],
                }
            )
    # the suggested order: the least redundancy lost per share of the macs comes first
    ranked = sorted(blocks, key=lambda entry: (1 - entry["redundancy"]) / max(entry["share"], 1e-12))
    for rank, entry in enumerate(ranked, 1):
        entry["order"] = rank
    return blocks
