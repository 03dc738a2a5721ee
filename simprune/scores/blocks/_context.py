"""The context in which blocks are scored."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from simprune import measures
from simprune.core.checkpoint import Checkpoint
from simprune.core.redundancy import Points
from simprune.measures import Measure, SimilarityMatrix
from simprune.scores.blocks.stream import Stream
from simprune.trace.network import Network


@dataclass(frozen=True)
class BlockContext:
    """The network, its batches and the stream around its blocks, which a score of blocks reads.

    Args:
        network: the original.
        calibration: batches that can be walked more than once.
        stream: the representations before and after blocks.
        measure: of similarity.
        checkpoint: where the matrix of similarities is saved, and looked up; None for nowhere.
    """

    network: Network
    calibration: Iterable
    stream: Stream
    measure: Measure
    checkpoint: Checkpoint | None = None

    @cached_property
    def whole(self) -> SimilarityMatrix:
        """The measure's own values for all points, in the order of `stream.rows`; computed once."""
        known = None if self.checkpoint is None else self.checkpoint.load("similarity")
        if known is not None:
            return SimilarityMatrix(tuple(self.stream.rows), known["values"].numpy(), self.measure.id)
        matrix = measures.matrix(self.measure, self.stream.rows, self.stream.labels_for(self.measure))
        if self.checkpoint is not None:
            self.checkpoint.save("similarity", {"values": torch.from_numpy(matrix.values.copy())})
        return matrix

    def similarity(self, first: str, second: str) -> float:
        """Similarity of two points of the stream, in [0, 1]."""
        return as_redundancy(self.measure, float(self.matrix([first, second]).values[0, 1]))

    def similarities(self) -> np.ndarray:
        """(points, points) similarity of all points, in [0, 1], in the order of `stream.rows`."""
        return np.vectorize(lambda value: as_redundancy(self.measure, value))(self.whole.values)

    def points(self) -> Points:
        """The similarities of all points, in [0, 1], and the chains that the points belong to, as plain data."""
        chains = tuple((chain.points, tuple(block.name for block in chain.blocks)) for chain in self.stream.chains)
        return Points(self.whole.names, self.similarities(), chains)

    def matrix(self, points: Sequence[str]) -> SimilarityMatrix:
        """The measure's own values for some points."""
        rows = [self.whole.names.index(point) for point in points]
        return SimilarityMatrix(tuple(points), self.whole.values[np.ix_(rows, rows)], self.measure.id)


def as_redundancy(measure: Measure, value: float) -> float:
    """The value of a measure as a redundancy in [0, 1].

    A similarity is clipped to [0, 1]. A distance d of range [0, top] becomes 1 - d / top, or 1 / (1 + d) where it has
    no upper limit. An undefined value (NaN) becomes 0.

    >>> as_redundancy(measures.get("cka"), 1.5)
    1.0
    """
    if value != value:
        return 0.0
    if not measure.larger_is_more_similar:
        top = measure.range[1]
        value = 1 / (1 + value) if top == float("inf") else 1 - value / top
    return min(max(value, 0.0), 1.0)
