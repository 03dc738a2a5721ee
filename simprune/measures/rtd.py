"""Representation topology divergence: loops that one set of distances closes and the other does not.

The Rips complex of the 2N x 2N matrix [[0, r1], [r1, m]], m = min(r1, r2), never has to be built. At every scale s
its first N points span one simplex, so it is, up to homotopy, the Rips complex B of m with a subcomplex A shrunk to a
point: A holds the simplices of B whose vertices all lie within s of one point in r1. Both have all N points as
vertices. So each edge (j, k) opens a class at m(j, k) and shuts it, alone, at
c(j, k) = min over v of max(r1(v, j), r1(v, k)), and a triangle of B relates those of its edges that are still open.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from simprune.core.neighbours import unit_scaled_
from simprune.measures._base import Distance
from simprune.measures._products import centred
from simprune.measures._rows import distance_matrix

QUANTILE = 0.9  # of all N^2 distances, zeros included, becomes 1


@dataclass(frozen=True)
class RTD(Distance):
    """Total length of the loops present in one representation's distances and not in the other's; 0 = none.

    In [0, inf), no metric. Euclidean distances of X (N, D) and of Y (N, D') are divided by their 0.9-quantiles, then
    H1 bars of the Rips complex of [[0, r1], [r1, min(r1, r2)]] are summed, the mean of both directions is taken, and
    the mean over `subsets` random subsets of `size` rows drawn from `seed` (all rows, once, where N <= size). Grows
    with the number of rows: compare only values of one `size`. Raises ValueError for size < 3 or subsets < 1.

    Source: Barannikov, Trofimov, Balabin, Burnaev 2022, arXiv:2201.00058.

    >>> angle = torch.arange(8) * torch.pi / 4
    >>> circle = torch.stack([angle.cos(), angle.sin()], 1)
    >>> round(RTD()(circle, angle[:, None]), 4)
    0.8016
    """

    subsets: int = 10
    size: int = 500
    seed: int = 0

    id = "rtd"
    invariant_to = frozenset({"PT", "OT", "IS", "TR"})
    minimum_rows = 3
    cost = (
        "prepare: the distances of n = min(N, size) rows per subset, O(n^2 D); pair: on the CPU, O(n^3) to find the "
        "loops and a sparse reduction for each, per subset and direction"
    )
    undefined = "in a representation nine tenths of the distances are zero"

    def _configure(self) -> None:
        if self.size < 3 or self.subsets < 1:
            raise ValueError(f"rtd: size must be at least 3 and subsets at least 1, got {self.size} and {self.subsets}")

    def _prepare(self, X: Tensor) -> list[np.ndarray]:
        X = unit_scaled_(centred(X))
        if len(X) <= self.size:
            chosen = [torch.arange(len(X))]
        else:
            rng = np.random.default_rng(self.seed)
            chosen = [torch.from_numpy(rng.choice(len(X), self.size, replace=False)) for _ in range(self.subsets)]
        scaled = []
        for rows in chosen:
            apart = distance_matrix(X[rows.to(X.device)]).cpu().numpy()
            unit = np.quantile(apart, QUANTILE)
            scaled.append(apart / unit if unit > 0 else np.full_like(apart, math.nan))
        return scaled

    def _compare(self, a: list[np.ndarray], b: list[np.ndarray]) -> float:
        return float(np.mean([(divergence(r1, r2) + divergence(r2, r1)) / 2 for r1, r2 in zip(a, b, strict=True)]))


def divergence(r1: np.ndarray, r2: np.ndarray) -> float:
    """Summed H1 bars of the Rips complex of [[0, r1], [r1, min(r1, r2)]]; symmetric (N, N), zero diagonals.

    Persistent cohomology over two elements, one column of cells per edge: its open triangles and its own end. NaN
    where r1 or r2 holds NaN.
    """
    if np.isnan(r1).any() or np.isnan(r2).any():
        return math.nan
    columns = _Columns(np.minimum(r1, r2), r1)
    owners: dict[int, np.ndarray] = {}
    total = 0.0
    for edge in columns.unsettled():
        column = columns.of(edge)
        while True:  # until no reduced column starts with the same cell
            first = int(column[0])
            owner = owners[first] if first in owners else columns.settled_by(first)
            if owner is None:
                break
            column = _sum(column, owner)
        owners[first] = column
        total += columns.time(first) - float(columns.births[edge])
    return total


def _sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cells in exactly one of two ascending columns, ascending; `np.setxor1d`, which sorts, is ten times slower."""
    both = np.concatenate([a, b])
    both.sort(kind="stable")  # two runs: merged, not sorted
    new = np.concatenate([[True], both[1:] != both[:-1], [True]])
    return both[new[1:] & new[:-1]]


class _Columns:
    """Coboundaries of edges, which are numbered by their birth.

    A cell is one integer that sorts by time: a triangle is its latest edge and the vertex opposite to it, the end of
    an edge is the last edge born before it, and its rank among all ends.
    """

    def __init__(self, births: np.ndarray, radii: np.ndarray) -> None:
        count = len(births)
        starts, ends = np.triu_indices(count, 1)
        order = np.argsort(births[starts, ends], kind="stable")
        self.starts, self.ends = starts[order], ends[order]
        self.births = births[self.starts, self.ends]
        self.count, edges = count, len(order)
        self.stride = count + edges
        self.rank = np.full((count, count), edges)  # no edge from a vertex to itself: later than all
        self.rank[self.starts, self.ends] = self.rank[self.ends, self.starts] = np.arange(edges)
        closest = np.stack([np.maximum(row, radii).min(1) for row in radii])  # min over v of max(r(v, j), r(v, k))
        deaths = closest[self.starts, self.ends]
        ending = np.argsort(deaths, kind="stable")
        self.deaths, self.death_rank = deaths[ending], np.argsort(ending)
        self.limit = np.searchsorted(self.births, deaths)  # edges born before an edge's end
        self.open = self.limit > np.arange(edges)
        # The opposite vertex if an open edge shuts at once, in a triangle of which it is the latest edge; otherwise -1.
        self.partner = np.full(edges, -1)
        opened = np.flatnonzero(self.open)
        for some in np.array_split(opened, max(1, len(opened) * count >> 21)):
            earlier = np.maximum(self.rank[self.starts[some]], self.rank[self.ends[some]]) < some[:, None]
            self.partner[some] = np.where(earlier.any(1), earlier.argmax(1), -1)

    def unsettled(self) -> np.ndarray:
        """Open edges that do not shut at once, the latest first."""
        return np.flatnonzero(self.open & (self.partner < 0))[::-1]

    def of(self, edge: int) -> np.ndarray:
        start, end = self.starts[edge], self.ends[edge]
        left, right = self.rank[start], self.rank[end]
        latest = np.maximum(np.maximum(left, right), edge)
        vertices = np.flatnonzero(latest < self.limit[edge])
        latest = latest[vertices]
        opposite = np.where(latest == edge, vertices, np.where(latest == left[vertices], end, start))
        end_of_edge = (self.limit[edge] - 1) * self.stride + self.count + self.death_rank[edge]
        cells = np.append(latest * self.stride + opposite, end_of_edge)
        cells.sort()
        return cells

    def settled_by(self, cell: int) -> np.ndarray | None:
        edge, vertex = divmod(cell, self.stride)
        return self.of(edge) if vertex < self.count and self.partner[edge] == vertex else None

    def time(self, cell: int) -> float:
        edge, rest = divmod(cell, self.stride)
        return float(self.births[edge] if rest < self.count else self.deaths[rest - self.count])
