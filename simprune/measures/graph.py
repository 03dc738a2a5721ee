"""Graphs of inputs: nodes are rows, edges their cosines; two layers are alike if their graphs are.

`k` nearest neighbours by cosine (a row itself left out, lower index first in ties) give directed edges, the graph
is the mean of both directions: an edge chosen by one end only has half its weight. Features are not centred.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from simprune.core.neighbours import directions, nearest
from simprune.measures._base import Prepared, Statistic
from simprune.measures._modularity import class_graph_modularity
from simprune.measures._products import TILE, Vector, centred
from simprune.measures._rows import warn_of_zero_rows
from simprune.measures.cka import Alignment


@dataclass(frozen=True)
class GBS(Alignment):
    """Mean over inputs of the cosine between their rows in two graphs of inputs; in [-1, 1], 1 = equal graphs.

    The graph of X (N, D) is the matrix of cosines of its rows with zero diagonal, or with `k` that of the k nearest
    neighbours, (D + D') / 2. An input without edges counts as 0, also against itself; a DegenerateWarning tells of
    zero rows. `center=True` removes column means first, which adds invariance to translation;
    the published form does not, and much of what it sees is the mean. `nodes(a, b)` gives the cosine of every input.
    Raises ValueError for k < 1 and for k >= N.

    Source: Chen, Lu, Yang, Wang, Xuan, Zhu et al. 2021, Graph-Based Similarity of Neural Network Representations,
    arXiv:2111.11165.

    >>> X = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    >>> gbs = GBS(k=4)
    >>> round(gbs(X, 3 * X), 4), gbs.nodes(gbs.prepare(X), gbs.prepare(X.relu())).shape
    (1.0, torch.Size([20]))
    """

    k: int | None = None
    center: bool = False

    id = "gbs"
    range = (-1.0, 1.0)
    invariant_to = frozenset({"PT", "OT", "IS"})
    cost = (
        "prepare: the N x N graph, O(N^2 D), or only rows of length 1 if dense and 2D <= N; pair: O(N^2), or O(N D D')"
    )
    undefined = "in a graph no input has an edge: rows are zero or orthogonal to each other"

    def _configure(self) -> None:
        self._require("k", self.k is None or self.k >= 1, "at least 1 or None for the dense graph")
        self._declare(minimum_rows=max(2, (self.k or 1) + 1))
        self._declare(keeps_float32=self.k is None)  # rounding must not decide who is a neighbour
        if self.center:
            self._declare(invariant_to=Alignment.invariant_to)

    def nodes(self, a: Prepared, b: Prepared) -> Tensor:
        """The cosine of every input's edges in both graphs, (N,) float64; `compare(a, b)` is its mean."""
        self._check([a, b])
        first, second = (self._rows(item.data, 0, item.rows) for item in (a, b))
        return (first.double() * second).sum(1)

    def _prepare(self, X: Tensor) -> Vector:
        rows = centred(X) if self.center else X
        warn_of_zero_rows(self, rows)
        noise = 16 * torch.finfo(X.dtype).eps  # of cosines between orthogonal rows
        if self.k is None and 2 * rows.shape[1] <= len(rows):
            thin = _thin(directions(rows.double()), max(noise, 1e-7), X.dtype)
            return Vector(len(X), self._size(thin.weight > 0), thin)
        if self.k is None:
            graph = _dense(directions(rows))
        else:
            indices, cosines = nearest(rows, self.k)
            directed = rows.new_zeros(len(rows), len(rows)).scatter_(1, indices, cosines)
            graph = (directed + directed.T) / 2
        length = torch.linalg.vector_norm(graph, dim=1, keepdim=True)
        graph = graph.div_(torch.where(length > noise, length, math.inf))
        return Vector(len(X), self._size(length > noise), graph)

    def _size(self, joined: Tensor) -> Tensor:
        return torch.where(joined.any(), joined.new_tensor(len(joined), dtype=torch.float64), math.nan)

    def _rows(self, item: Vector, start: int, stop: int) -> Tensor:
        if isinstance(item.values, Tensor):
            return super()._rows(item, start, stop)
        graph = _dense(item.values.rows, start, stop)
        return graph.mul_(item.values.weight[start:stop, None].to(graph.dtype))

    def _inner(self, a: Vector, b: Vector) -> Tensor:
        if isinstance(a.values, Tensor) or isinstance(b.values, Tensor):
            return super()._inner(a, b)
        return _thin_products(a.values, [b.values])[0]

    def _all_products(self, items: Sequence[Vector]) -> Tensor:
        thin = [item.values for item in items if not isinstance(item.values, Tensor)]
        count, width = items[0].height, sum(graph.rows.shape[1] for graph in thin)
        if len(thin) < len(items) or width**2 > count * (width + len(items) ** 2):
            return super()._all_products(items)
        inner = items[0].size.new_zeros(len(items), len(items))
        for i, graph in enumerate(thin):
            inner[i, i:] = inner[i:, i] = _thin_products(graph, thin[i:])
        return inner


class Thin(NamedTuple):
    """A dense graph of cosines by its rows of length 1 (N, D): the graph would be larger.

    In float64, `own` (N,): a row's cosine with itself, 1, or 0 for a zero row; `weight` (N,): 1 / length of its edges,
    0 without any.
    """

    rows: Tensor
    own: Tensor
    weight: Tensor


def _thin(rows: Tensor, noise: float, dtype: torch.dtype) -> Thin:
    own = rows.square().sum(1)
    square = ((rows @ (rows.T @ rows)) * rows).sum(1) - own.square()  # of the edges, without the one to itself
    length = square.clamp_(min=0).sqrt_()
    return Thin(rows.to(dtype), own, torch.where(length > noise, 1 / length, 0.0))


def _thin_products(a: Thin, others: Sequence[Thin]) -> Tensor:
    """Sums over inputs of the cosines between a's edges and those of every graph in `others`: (len(others),).

    With rows u, v: sum_j (u_i u_j)(v_i v_j) = u_i' (U' V) v_i, so no graph is formed.
    """
    joined = torch.cat([other.rows for other in others], 1)
    own = a.rows.to(torch.promote_types(a.rows.dtype, joined.dtype))
    joined = joined.to(own.dtype)
    through = (own @ (own.T @ joined)).mul_(joined)
    widths = [other.rows.shape[1] for other in others]
    edges = torch.stack([part.sum(1, dtype=torch.float64) for part in through.split(widths, 1)])
    edges -= torch.stack([other.own for other in others]) * a.own
    return (edges * torch.stack([other.weight for other in others])) @ a.weight


def _dense(rows: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
    graph = rows[start:stop] @ rows.T
    graph.diagonal(start).zero_()
    return graph


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

    Source: Chen, Lu, Yang, Wang, Xuan, Zhu et al. 2021, Graph-Based Similarity of Neural Network Representations,
    arXiv:2111.11165.

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
    cost = "prepare: three numbers, O(N^2 D) in row blocks, then the paths of length 2, about O(N k^2); pair: O(1)"
    undefined = "the graph has no triangles"

    def _configure(self) -> None:
        self._require("k", self.k >= 1, "at least 1")
        self._declare(minimum_rows=self.k + 1)

    def _prepare(self, X: Tensor, labels: Tensor) -> Motifs:
        warn_of_zero_rows(self, X)
        indices, cosines = nearest(X, self.k)
        return Motifs(_triangles(indices, cosines.abs() > 1e-12, labels))


def _triangles(indices: Tensor, joined: Tensor, labels: Tensor) -> list[int]:
    """Triangles of nodes of one, two, three classes, in the undirected graph of the neighbours (N, k) with an edge.

    Every triangle is met once, as an edge u < v and an edge v < w; a tile of such paths is held.
    """
    count = len(indices)
    first, which = joined.nonzero(as_tuple=True)
    second = indices[first, which]
    edges = (torch.minimum(first, second) * count + torch.maximum(first, second)).unique()
    u, v = edges // count, edges % count
    begin = torch.searchsorted(u, torch.arange(count + 1, device=u.device))  # index of every node's first edge
    paths = begin[v + 1] - begin[v]
    counts = [0, 0, 0]
    step = max(1, TILE // max(1, int(paths.max()))) if len(edges) else 1
    for some in torch.arange(len(edges), device=u.device).split(step):
        lengths = paths[some]
        edge = some.repeat_interleave(lengths)
        nth = torch.arange(len(edge), device=u.device) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
        w = v[begin[v[edge]] + nth]
        third = u[edge] * count + w
        closed = edges[torch.searchsorted(edges, third).clamp_(max=len(edges) - 1)] == third
        a, b, c = (labels[nodes[closed]] for nodes in (u[edge], v[edge], w))
        equal = (a == b).int() + (b == c) + (a == c)
        for kind, pairs in enumerate((3, 1, 0)):
            counts[kind] += int((equal == pairs).sum())
    return counts


@dataclass(frozen=True)
class GraphModularity(Statistic):
    """Newman modularity of the classes in the weighted graph of the k nearest rows by cosine; at most 1 = separated.

    Nodes are rows of X (N, D). Needs labels (N,). A zero row has cosine 0 to all, with a DegenerateWarning. Binary
    edges and k = 10: `knn_graph_modularity`. Raises ValueError for k < 1 and for k >= N.

    Source: Lu, Yang, Zhu, Chen, Yu, Xu, Chen, Xuan 2022, Understanding the Dynamics of DNNs Using Graph Modularity,
    arXiv:2111.12485; Newman 2006, arXiv:physics/0602124.

    >>> X = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    >>> GraphModularity(k=1).describe(X, labels=[0, 0, 1, 1])
    0.5
    """

    k: int = 3

    id = "graph_modularity"
    invariant_to = frozenset({"PT", "OT", "IS"})
    needs_labels = True
    cost = "prepare: one number, O(N^2 D) in row blocks; pair: O(1)"
    undefined = "the weights of all edges do not add up to a positive number"

    binary: ClassVar[bool] = False

    def _configure(self) -> None:
        self._require("k", self.k >= 1, "at least 1")
        self._declare(minimum_rows=self.k + 1)

    def _prepare(self, X: Tensor, labels: Tensor) -> Tensor:
        warn_of_zero_rows(self, X)
        return class_graph_modularity(X, labels, self.k, self.binary)


@dataclass(frozen=True)
class KNNGraphModularity(GraphModularity):
    """Newman modularity of the classes in the graph of the k nearest rows by cosine; at most 1, 1 = well separated.

    Rows of X (N, D) are nodes; an edge of weight 1 joins two if either is among the other's k nearest. Needs labels
    (N,). A zero row has cosine 0 to all, with a DegenerateWarning. The paper has weighted edges and k = 3
    (`graph_modularity`). Raises ValueError for k < 1.

    Source: Lu, Yang, Zhu, Chen, Yu, Xu, Chen, Xuan 2022, arXiv:2111.12485; Newman 2006, arXiv:physics/0602124.

    >>> X = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    >>> KNNGraphModularity(k=1).describe(X, labels=[0, 0, 1, 1])
    0.5
    """

    k: int = 10

    id = "knn_graph_modularity"
    undefined = "this does not occur for finite rows"
    binary = True
