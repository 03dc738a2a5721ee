"""Geometry score: for how long, as scale grows, a representation shows each number of loops."""

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy
import torch
from torch import Tensor

from simprune.core.neighbours import unit_scaled_
from simprune.measures._base import Distance, Prepared
from simprune.measures._products import TILE, centred
from simprune.measures._rows import distance_matrix


class LivingTimes(NamedTuple):
    """Share of the scales at which there are i loops (repeats, i_max), and its mean over repeats (i_max,)."""

    repeats: Tensor
    mean: Tensor


@dataclass(frozen=True)
class GeometryScore(Distance):
    """Squared difference of how long each number of loops lives, in [0, 2], 0 = equal; no metric.

    `landmarks` rows of X (N, D) are drawn with replacement. In their witness complex, whose scale alpha runs from 0 to
    `gamma` times the largest distance between a row and a landmark, the share of scales with i loops (first Betti
    number i < i_max) is measured; its mean over `repeats` draws from `seed` gives a vector per representation. gamma
    None is N / (128 * 5000). A set of landmarks has scale alpha if all its subsets have and for some row no landmark
    outside is nearer by more than alpha than any inside. Draws are the same for all representations of N rows.

    Values vary with `seed`: `error(a, b)` gives the standard error. Raises ValueError for landmarks < 3, i_max < 1,
    repeats < 2 or gamma that is not positive.

    Source: Khrulkov, Oseledets 2018, arXiv:1802.02664; de Silva, Carlsson 2004 for witness complexes.

    >>> angle = torch.arange(100) * torch.pi / 50
    >>> circle = torch.stack([angle.cos(), angle.sin()], 1)
    >>> score = GeometryScore(repeats=20, gamma=0.1)
    >>> round(score(circle, 5 * circle + 1), 9), score(circle, angle[:, None]) > 0.2
    (0.0, True)
    """

    landmarks: int = 64
    i_max: int = 100
    repeats: int = 1000
    gamma: float | None = None
    seed: int = 0

    id = "geometry_score"
    range = (0.0, 2.0)  # both vectors are non-negative and sum to at most 1
    invariant_to = frozenset({"PT", "OT", "IS", "TR"})
    cost = (
        "prepare: repeats x i_max numbers, O(N^2 D) with N^2 distances held meanwhile, then on the CPU per repeat "
        "O(N landmarks) and the reduction of a complex of about N triangles; pair: O(i_max)"
    )
    undefined = "the representation is the same for all inputs"

    def _configure(self) -> None:
        if self.landmarks < 3 or self.i_max < 1 or self.repeats < 2:
            raise ValueError(
                "geometry_score: landmarks must be at least 3, i_max at least 1 and repeats at least 2; "
                f"got {self.landmarks}, {self.i_max} and {self.repeats}"
            )
        self._require("gamma", self.gamma is None or 0 < self.gamma < math.inf, "positive or None")

    def error(self, a: Prepared, b: Prepared) -> float:
        """Standard error of `compare(a, b)` over draws of landmarks, to first order."""
        self._check([a, b])
        influence = 2 * (a.data.repeats - b.data.repeats) @ (a.data.mean - b.data.mean)
        return float(influence.std() / math.sqrt(self.repeats))

    def _prepare(self, X: Tensor) -> LivingTimes:
        count = len(X)
        apart = distance_matrix(unit_scaled_(centred(X))).cpu().numpy()
        gamma = count / (128 * 5000) if self.gamma is None else self.gamma
        rng = np.random.default_rng(self.seed)
        draws = (rng.integers(count, size=self.landmarks) for _ in range(self.repeats))
        times = np.stack([living_times(apart[:, landmarks], gamma, self.i_max) for landmarks in draws])
        repeats = torch.from_numpy(times).to(X.device)
        return LivingTimes(repeats, repeats.mean(0))

    def _compare(self, a: LivingTimes, b: LivingTimes) -> Tensor:
        return (a.mean - b.mean).square().sum()


def living_times(apart: np.ndarray, gamma: float, i_max: int) -> np.ndarray:
    """Share (i_max,) of the scales up to gamma * max(apart) at which there are i loops; distances (N, landmarks).

    NaN where all distances are zero.
    """
    top = gamma * apart.max()
    if not top > 0:
        return np.full(i_max, math.nan)
    born, dead = loops(*witness_complex(apart, top))
    times = np.concatenate([[0.0], born, dead, [top]])
    change = np.repeat([0, 1, -1, 0], [1, len(born), len(dead), 1])
    order = np.argsort(times, kind="stable")
    alive = change[order].cumsum()[:-1]
    lengths = np.diff(times[order])
    return np.bincount(alive, lengths, i_max)[:i_max] / top


def witness_complex(apart: np.ndarray, top: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scales of edges (l, l), and triangles (T, 3) with their scales (T,); only those up to `top`, others infinite.

    All landmarks are rows, so every vertex has scale 0. A row sees a simplex from max d(inside) - min d(outside) on.
    """
    count = apart.shape[1]
    order = np.argsort(apart, axis=1, kind="stable")
    ordered = np.take_along_axis(apart, order, 1)
    edges = np.full(count * count, math.inf)
    codes, scales = _seen(order, ordered, 2, top)
    np.minimum.at(edges, codes, scales)
    edges = edges.reshape(count, count)
    edges = np.minimum(edges, edges.T)
    codes, scales = _seen(order, ordered, 3, top)
    codes, where = np.unique(codes, return_inverse=True)
    earliest = np.full(len(codes), math.inf)
    np.minimum.at(earliest, where, scales)
    corners = np.stack([codes // count**2, codes // count % count, codes % count], 1)
    for i, j in itertools.combinations(range(3), 2):
        earliest = np.maximum(earliest, edges[corners[:, i], corners[:, j]])
    within = earliest <= top
    return edges, corners[within], earliest[within]


def _seen(order: np.ndarray, ordered: np.ndarray, size: int, top: float) -> tuple[np.ndarray, np.ndarray]:
    """Sets of `size` landmarks that some row sees at a scale up to `top`: codes in base `landmarks`, and scales.

    A set is stated by its ranks, from 0, in a row's order of landmarks. The nearest landmark outside a set has rank
    `size` - 1 at most, unless the set is the `size` nearest, which are seen from 0 on.
    """
    rows, count = ordered.shape
    depth = int((ordered <= ordered[:, size - 1 : size] + top).sum(1).max())
    ranks = np.array(list(itertools.combinations(range(depth), size)))
    outside = np.array([next(rank for rank in range(size + 1) if rank not in chosen) for chosen in ranks.tolist()])
    outside = np.minimum(outside, count - 1)  # all landmarks inside: scale 0, as below
    codes, scales = [], []
    step = max(1, TILE // len(ranks))
    for start in range(0, rows, step):
        near = ordered[start : start + step]
        scale = np.maximum(near[:, ranks[:, -1]] - near[:, outside], 0.0)
        row, which = np.nonzero(scale <= top)
        corners = np.sort(order[start + row[:, None], ranks[which]], axis=1)
        codes.append(corners @ count ** np.arange(size - 1, -1, -1))
        scales.append(scale[row, which])
    return np.concatenate(codes), np.concatenate(scales)


def loops(edges: np.ndarray, corners: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """When loops are born and when they die; which death belongs to which birth does not matter here.

    An edge within a connected component opens a loop. A triangle closes one if its boundary is no sum of earlier
    boundaries; columns over two elements are the bits of an integer.
    """
    starts, ends = np.triu_indices(len(edges), 1)
    times = edges[starts, ends]
    order = np.argsort(times, kind="stable")
    order = order[: int(np.isfinite(times).sum())]
    rank = np.zeros(edges.shape, dtype=np.int64)
    rank[starts[order], ends[order]] = np.arange(len(order))

    components = scipy.cluster.hierarchy.DisjointSet(range(len(edges)))
    ordered = zip(starts[order].tolist(), ends[order].tolist(), times[order].tolist(), strict=True)
    born = [time for start, end, time in ordered if not components.merge(start, end)]

    dead: list[float] = []
    reduced: dict[int, int] = {}
    sequence = np.argsort(scales, kind="stable")
    i, j, k = corners[sequence].T
    sides = np.stack([rank[i, j], rank[i, k], rank[j, k]], 1).tolist()
    for (a, b, c), time in zip(sides, scales[sequence].tolist(), strict=True):
        if len(dead) == len(born):
            break
        bits = 1 << a | 1 << b | 1 << c
        while bits and (earlier := reduced.get(bits.bit_length())):
            bits ^= earlier
        if bits:
            reduced[bits.bit_length()] = bits
            dead.append(time)
    return np.array(born), np.array(dead)
