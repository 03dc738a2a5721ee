"""Graphs of inputs: nodes are rows, edges their cosines; two layers are alike if their graphs are.

`k` nearest neighbours by cosine (a row itself left out, lower index first in ties) give directed edges, the graph
is the mean of both directions: an edge chosen by one end only has half its weight. Features are not centred.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simprune.measures._base import Prepared, Statistic
from simprune.measures._modularity import class_graph_modularity
from simprune.measures._products import TILE, InnerProduct, Vector, centred
from simprune.measures._rows import directions, nearest, warn_of_zero_rows

CHEN = "Chen, Lu, Yang, Wang, Xuan, Zhu et al. 2021, Graph-Based Similarity, arXiv:2111.11165"


@dataclass(frozen=True)
class GBS(InnerProduct):
    """Mean over inputs of the cosine between their rows in two graphs of inputs; in [-1, 1], 1 = equal graphs.

    The graph of X (N, D) is the matrix of cosines of its rows with zero diagonal, or with `k` that of the k nearest
    neighbours, (D + D') / 2. An input without edges counts as 0, also against itself; a DegenerateWarning tells of
    zero rows. `center=True` removes column means first, which adds invariance to translation;
    the published form does not, and much of what it sees is the mean. `nodes(a, b)` gives the cosine of every input.
    Raises ValueError for k < 1 and for k >= N.

    Source: Chen et al. 2021, Graph-Based Similarity of Neural Network Representations, arXiv:2111.11165.

    >>> X = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    >>> gbs = GBS(k=4)
    >>> round(gbs(X, 3 * X), 4), gbs.nodes(gbs.prepare(X), gbs.prepare(X.relu())).shape
    (1.0, torch.Size([20]))
    """

    k: int | None = None
    center: bool = False

    id = "gbs"
    larger_is_more_similar = True
    range = (-1.0, 1.0)
    invariant_to = frozenset({"PT", "OT", "IS"})
    source = CHEN
    cost = "prepare: the N x N graph with rows of length 1, O(N^2 D); pair: O(N^2)"
    undefined = "in a graph no input has an edge: rows are zero or orthogonal to each other"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k is not None and self.k < 1:
            raise ValueError(f"gbs: k must be at least 1 or None for the dense graph, got {self.k}")
        self._declare(minimum_rows=max(2, (self.k or 1) + 1))
        self._declare(keeps_float32=self.k is None)  # rounding must not decide who is a neighbour
        if self.center:
            self._declare(invariant_to=frozenset({"PT", "OT", "IS", "TR"}))

    def nodes(self, a: Prepared, b: Prepared) -> Tensor:
        """The cosine of every input's edges in both graphs, (N,) float64; `compare(a, b)` is its mean."""
        self._check([a, b])
        return (a.data.values.double() * b.data.values).sum(1)

    def _prepare(self, X: Tensor) -> Vector:
        rows = centred(X) if self.center else X
        warn_of_zero_rows(self, rows)
        graph = _dense(rows) if self.k is None else _sparse(rows, self.k)
        length = torch.linalg.vector_norm(graph, dim=1, keepdim=True)
        noise = 16 * torch.finfo(X.dtype).eps  # of cosines between orthogonal rows
        graph = graph.div_(torch.where(length > noise, length, math.inf))
        size = torch.where((length > noise).any(), graph.new_tensor(len(X), dtype=torch.float64), math.nan)
        return Vector(len(X), size, graph)

    def _score(self, inner: Tensor, size_a: Tensor, size_b: Tensor) -> Tensor:
        return (inner / (size_a * size_b).sqrt()).clamp(-1.0, 1.0)


def _dense(X: Tensor) -> Tensor:
    rows = directions(X)
    graph = rows @ rows.T
    graph.diagonal().zero_()
    return graph


def _sparse(X: Tensor, k: int) -> Tensor:
    indices, cosines = nearest(X, k)
    directed = X.new_zeros(len(X), len(X)).scatter_(1, indices, cosines)
    return (directed + directed.T) / 2


class Motifs(float):
    """Share of triangles within one class, a number that also holds `counts`.

    `counts`: triangles whose three nodes are of one class, of two classes, of three classes.
    """

    counts: tuple[int, int, int]

    def __new__(cls, counts: Sequence[int]) -> "Motifs":
        total = sum(counts)
        self = super().__new__(cls, counts[0] / total if total else math.nan)
        self.counts = (counts[0], counts[1], counts[2])
        return self

    def __getnewargs__(self) -> tuple[tuple[int, int, int]]:
        return (self.counts,)


@dataclass(frozen=True)
class GBSMotif(Statistic):
    """Share of the triangles in the graph of the k nearest rows by cosine that lie within one class; in [0, 1].

    Nodes are rows of X (N, D); an edge, here without weight, joins two if either is among the other's k nearest and
    their cosine is not zero. Needs labels (N,). `describe` returns the share, and in its `counts` how many triangles
    have nodes of one class, two classes, three classes. Raises ValueError for k < 1 and for k >= N.

    Source: Chen et al. 2021, Graph-Based Similarity of Neural Network Representations, arXiv:2111.11165.

    >>> X = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0], [0.1, 1.0], [0.2, 1.0]])
    >>> motifs = GBSMotif(k=2).describe(X, labels=[0, 0, 0, 1, 1, 2])
    >>> motifs, motifs.counts
    (0.5, (1, 1, 0))
    """

    k: int = 5

    id = "gbs_motif"
    range = (0.0, 1.0)
    invariant_to = frozenset({"PT", "OT", "IS"})
    needs_labels = True
    source = CHEN
    cost = "prepare: three numbers, O(N^2 D) in row blocks, then the paths of length 2, about O(N k^2); pair: O(1)"
    undefined = "the graph has no triangles"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_neighbour(self, self.k)

    def _prepare(self, X: Tensor, labels: Tensor) -> Motifs:
        warn_of_zero_rows(self, X)
        indices, cosines = nearest(X, self.k)
        return Motifs(_triangles(indices, cosines.abs() > 1e-12, labels))

    def describe(self, X: Any, labels: Any = None, **extra: Any) -> Motifs:
        """The share of X (N, D) with its `counts`; NaN, with an UndefinedWarning, without triangles."""
        found = self.prepare(X, labels, **extra).data
        if math.isnan(found):
            self._warn("here")
        return found


def _require_neighbour(measure: "GBSMotif | GraphModularity", k: int) -> None:
    if k < 1:
        raise ValueError(f"{measure.id}: k must be at least 1, got {k}")
    measure._declare(minimum_rows=k + 1)


def _triangles(indices: Tensor, kept: Tensor, labels: Tensor) -> list[int]:
    """Triangles of nodes of one, two, three classes, in the undirected graph of kept neighbours (N, k).

    Every triangle is met once, as an edge u < v and an edge v < w; a tile of such paths is held.
    """
    count = len(indices)
    first, which = kept.nonzero(as_tuple=True)
    second = indices[first, which]
    edges = (torch.minimum(first, second) * count + torch.maximum(first, second)).unique()
    u, v = edges // count, edges % count
    begin = torch.searchsorted(u, torch.arange(count + 1, device=u.device))  # where each node's edges are
    paths = begin[v + 1] - begin[v]
    found = [0, 0, 0]
    step = max(1, TILE // max(1, int(paths.max()))) if len(edges) else 1
    for some in torch.arange(len(edges), device=u.device).split(step):
        edge = some.repeat_interleave(paths[some])
        nth = torch.arange(len(edge), device=u.device) - (paths[some].cumsum(0) - paths[some]).repeat_interleave(
            paths[some]
        )
        w = v[begin[v[edge]] + nth]
        third = u[edge] * count + w
        closed = edges[torch.searchsorted(edges, third).clamp_(max=len(edges) - 1)] == third
        a, b, c = (labels[nodes[closed]] for nodes in (u[edge], v[edge], w))
        equal = (a == b).int() + (b == c) + (a == c)
        for kind, pairs in enumerate((3, 1, 0)):
            found[kind] += int((equal == pairs).sum())
    return found


@dataclass(frozen=True)
class GraphModularity(Statistic):
    """Newman modularity of the classes in the weighted graph of the k nearest rows by cosine; at most 1 = separated.

    Nodes are rows of X (N, D). Needs labels (N,). A zero row has cosine 0 to all, with a DegenerateWarning. Binary
    edges and k = 10: `knn_graph_modularity`. Raises ValueError for k < 1 and for k >= N.

    Source: Lu et al. 2022, Understanding the Dynamics of DNNs Using Graph Modularity, arXiv:2111.12485.

    >>> X = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    >>> GraphModularity(k=1).describe(X, labels=[0, 0, 1, 1])
    0.5
    """

    k: int = 3

    id = "graph_modularity"
    invariant_to = frozenset({"PT", "OT", "IS"})
    needs_labels = True
    source = "Lu, Yang, Zhu, Chen, Yu, Xu, Chen, Xuan 2022, arXiv:2111.12485; Newman 2006, arXiv:physics/0602124"
    cost = "prepare: one number, O(N^2 D) in row blocks; pair: O(1)"
    undefined = "the weights of all edges do not add up to a positive number"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_neighbour(self, self.k)

    def _prepare(self, X: Tensor, labels: Tensor) -> Tensor:
        warn_of_zero_rows(self, X)
        return class_graph_modularity(X, labels, self.k)
