"""Intrinsic multi-scale distance: how differently heat spreads over two neighbour graphs."""

import math
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from simprune.core.neighbours import largest, unit_scaled_
from simprune.measures._base import DegenerateWarning, Distance, Prepared
from simprune.measures._products import TILE, centred

TIMES = 256  # between 0.1 and 10, equally spaced in their logarithm
STEPS = 20  # of Lanczos: exact for polynomials of degree 39, so e^(-tL) up to t = 10 has rounding error only
TOGETHER = 16  # probes iterated at once


class HeatTrace(NamedTuple):
    """h(t) = tr(e^(-tL)) / N at 256 times (256,), and its standard error (256,), zero where h is exact."""

    values: Tensor
    error: Tensor


@dataclass(frozen=True)
class IMD(Distance):
    """Largest weighted difference of heat traces of the graphs of nearest neighbours; in [0, inf), 0 = equal.

    scale * max over t of e^(-2(t + 1/t)) |h(t) - h'(t)|, h(t) = tr(e^(-tL)) / N at 256 log-spaced t in [0.1, 10]; L is
    the normalised Laplacian of the graph that joins two rows of X (N, D), by an edge of weight 1, if either is among
    the other's k nearest. Rows equally far count in their order. scale=1e6 gives the unit of the authors' package.
    A pseudo-metric: 0 says that the graphs have one spectrum, not that they are the same.

    h is exact up to `exact_up_to` rows; above, it is estimated by stochastic Lanczos quadrature from `probes` random
    vectors drawn from `seed`, the same for all representations, with a DegenerateWarning that states the standard
    error; `error(a, b)` gives it for a pair. Raises ValueError for k < 1, scale <= 0, probes < 2.

    Source: Tsitsulin, Munkhoeva, Mottin, Karras, Bronstein, Oseledets, Müller 2020, The Shape of Data,
    arXiv:1905.11141; Ubaru, Chen, Saad 2017 for the quadrature.

    >>> X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    >>> IMD()(X, 2 * X + 1), round(IMD(scale=1e6)(X, X**3))
    (0.0, 76)
    """

    k: int = 5
    scale: float = 1.0
    exact_up_to: int = 3000
    probes: int = 100
    seed: int = 0

    id = "imd"
    invariant_to = frozenset({"PT", "OT", "IS", "TR"})
    cost = (
        "prepare: 512 numbers, O(N^2 D) and one O(N^3) eigvalsh, or O(N k) per Lanczos step and probe above "
        "exact_up_to rows; pair: O(1)"
    )
    undefined = "the representation is the same for all inputs"

    def _configure(self) -> None:
        if self.k < 1 or not 0 < self.scale < math.inf or self.probes < 2:
            raise ValueError(
                "imd: k must be at least 1, scale positive and probes at least 2; "
                f"got {self.k}, {self.scale!r} and {self.probes}"
            )
        self._declare(minimum_rows=self.k + 1)

    def heat_trace(self, X: Tensor) -> HeatTrace:
        """h of X (N, D) float64, on its device; NaN where the representation is constant."""
        X = unit_scaled_(centred(X))
        edges = nearest_by_distance(X, self.k)
        times = _times(X.device)
        if len(X) <= self.exact_up_to:
            spectrum = torch.linalg.eigvalsh(laplacian(edges, len(X)).to_dense())
            values = torch.stack([(-t * spectrum).exp().mean() for t in times])
            error = torch.zeros_like(values)
        else:
            estimates = lanczos_traces(laplacian(edges, len(X)), times, self.probes, self.seed)
            values, error = estimates.mean(0), estimates.std(0) / math.sqrt(self.probes)
        return HeatTrace(torch.where(X.any(), values, math.nan), error)

    def error(self, a: Prepared, b: Prepared) -> float:
        """An upper bound of the standard error of `compare(a, b)`: 0 where both traces are exact."""
        self._check([a, b])
        return float((self._weights(a.device) * (a.data.error + b.data.error)).max())

    def _weights(self, device: torch.device) -> Tensor:
        times = _times(device)
        return self.scale * torch.exp(-2 * (times + 1 / times))

    def _prepare(self, X: Tensor) -> HeatTrace:
        trace = self.heat_trace(X)
        if len(X) > self.exact_up_to:
            worst = float((self._weights(X.device) * trace.error).max())
            warnings.warn(
                f"imd: {len(X)} rows are more than exact_up_to={self.exact_up_to}, so the heat trace is an estimate "
                f"from {self.probes} probes; it adds a standard error of up to {worst:.2g} to a distance",
                DegenerateWarning,
                stacklevel=4,
            )
        return trace

    def _compare(self, a: HeatTrace, b: HeatTrace) -> Tensor:
        return (self._weights(a.values.device) * (a.values - b.values).abs()).max()


def _times(device: torch.device) -> Tensor:
    return torch.logspace(-1, 1, TIMES, dtype=torch.float64, device=device)


def nearest_by_distance(X: Tensor, k: int) -> Tensor:
    """Indices (N, k) of the k rows nearest to each row of X (N, D), itself left out; lower index first in ties.

    Holds a tile of distances only, formed from differences, so that duplicate rows are at distance zero.
    """
    count = len(X)
    step = max(1, TILE // count)
    parts = []
    for start in range(0, count, step):
        apart = torch.cdist(X[start : start + step], X, compute_mode="donot_use_mm_for_euclid_dist")
        apart.diagonal(start).fill_(math.inf)
        bound = apart.kthvalue(k, dim=1, keepdim=True).values
        # in units of the k-th distance, so that ties are recognised at every scale
        near = torch.where(apart <= 2 * bound, apart / torch.where(bound > 0, 2 * bound, 1.0), 1.5)
        parts.append(largest(-near, k))
    return torch.cat(parts)


def laplacian(neighbours: Tensor, count: int) -> Tensor:
    """Normalised Laplacian (N, N), sparse, of the graph with an edge where either lists the other: (N, k) indices."""
    start = torch.arange(count, device=neighbours.device)[:, None].expand_as(neighbours).flatten()
    end = neighbours.flatten()
    codes = torch.cat([start * count + end, end * count + start]).unique()
    start, end = codes // count, codes % count
    degree = start.bincount(minlength=count).double()
    weight = (degree[start] * degree[end]).rsqrt()
    diagonal = torch.arange(count, device=codes.device)
    indices = torch.stack([torch.cat([start, diagonal]), torch.cat([end, diagonal])])
    values = torch.cat([-weight, torch.ones_like(degree)])
    return torch.sparse_coo_tensor(indices, values, (count, count), check_invariants=False).coalesce()


def lanczos_traces(L: Tensor, times: Tensor, probes: int, seed: int) -> Tensor:
    """Estimates (probes, len(times)) of tr(e^(-tL)) / N, one per random sign vector; their mean is unbiased.

    L (N, N) is symmetric and sparse. From a vector v of norm 1, Lanczos gives nodes and weights of a quadrature for
    v' e^(-tL) v; its vectors are made orthogonal explicitly.
    """
    count = len(L)
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (probes, count), generator=generator).to(L.device, torch.float64) * 2 - 1
    parts = [_quadrature(L, v / math.sqrt(count), times) for v in signs.split(TOGETHER)]
    return torch.cat(parts)


def _quadrature(L: Tensor, v: Tensor, times: Tensor) -> Tensor:
    """v' e^(-tL) v for every row v of (P, N), all of norm 1: (P, len(times))."""
    steps = min(STEPS, v.shape[1])
    basis = v.new_zeros(len(v), steps, v.shape[1])
    tridiagonal = v.new_zeros(len(v), steps, steps)
    for step in range(steps):
        basis[:, step] = v
        earlier = basis[:, : step + 1]
        w = torch.sparse.mm(L, v.T).T
        tridiagonal[:, step, step] = (w * v).sum(1)
        for _ in range(2):  # once is not enough in floating point, twice is
            w = w - (earlier.mT @ (earlier @ w[..., None]))[..., 0]
        length = torch.linalg.vector_norm(w, dim=1)
        if step + 1 < steps:
            length = torch.where(length > 1e-12, length, 0.0)  # the space is exhausted: later steps have no weight
            tridiagonal[:, step, step + 1] = tridiagonal[:, step + 1, step] = length
            v = w / torch.where(length > 0, length, math.inf)[:, None]
    nodes, vectors = torch.linalg.eigh(tridiagonal)
    weights = vectors[:, 0].square()
    return (weights[:, None] * torch.exp(-times[:, None] * nodes[:, None])).sum(-1)
