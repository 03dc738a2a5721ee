"""Representations made of features and gradients: each input is the outer product of the two, never formed.

With features F (N, D) and gradients G (N, D') of the same inputs the kernel is K = (F F') * (G G'), elementwise. It is
positive semi-definite, and centred before it is compared; features and gradients themselves are not centred.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simprune.core.neighbours import unit_scaled_
from simprune.measures._base import DegenerateWarning, Measure, Prepared
from simprune.measures._factors import Shape, gap
from simprune.measures._products import Vector
from simprune.measures.cka import Alignment, centred_kernel_


@dataclass(frozen=True)
class _WithGradients(Measure):
    """The kernel of both measures, exact or from a sketch over inputs, and its baseline."""

    sketch: int | None = None
    chunks: int = 1
    seed: int = 0

    invariant_to = frozenset({"PT", "OT", "IS"})
    extras = ("gradients",)
    undefined = "features or gradients vanish, or their kernel is the same for all inputs"

    def _configure(self) -> None:
        super()._configure()
        if self.sketch is None:
            if self.chunks != 1:
                raise ValueError(f"{self.id}: chunks={self.chunks} divides a sketch; set sketch too")
        elif self.chunks < 1 or self.sketch < 4 or self.sketch % self.chunks:
            raise ValueError(
                f"{self.id}: sketch must be at least 4 and a multiple of chunks, got sketch={self.sketch} and "
                f"chunks={self.chunks}"
            )

    def baseline(self, a: Prepared, Y: Any, gradients: Any, repeats: int = 10) -> np.ndarray:
        """Values (repeats,) of `a` against Y (N, D) and its gradients (N, D') with their inputs shuffled.

        These are scores of unrelated representations of these sizes; a value means something as far as it is higher.
        Rows of Y and of its gradients are shuffled together, from `seed`. Raises ValueError as `prepare`.
        """
        inputs = self._inputs("Y", Y, {"gradients": gradients})
        rng = np.random.default_rng([self.seed, 1])
        values = []
        for _ in range(repeats):
            order = rng.permutation(len(inputs["X"]))
            other = self.prepare(**{name: rows[order] for name, rows in inputs.items()})
            self._check_pair(a, other)
            values.append(float(self._compare(a.data, other.data)))
        return np.array(values)

    def _kernel(self, X: Tensor, gradients: Tensor) -> Tensor:
        """The kernel of all inputs (N, N), or of their sketch (sketch, sketch)."""
        parts = [unit_scaled_(rows.clone()) for rows in (X, gradients)]
        if self.sketch is not None:
            parts = sketched(parts, self.sketch, self.chunks, self.seed)
        F, G = parts
        return (F @ F.T).mul_(G @ G.T)

    def _check(self, prepared: Sequence[Prepared]) -> None:
        super()._check(prepared)
        if self.sketch is not None:
            text = (
                f"{self.id}: a sketch of {self.sketch} rows raises values, most of all of unrelated representations: "
                "compare them with baseline(...) and with no value of another sketch or without one"
            )
            if len({item.rows for item in prepared}) > 1:
                text += "; across different inputs they also depend on how the sketch happens to pair them"
            warnings.warn(text, DegenerateWarning, stacklevel=4)

    def _check_pair(self, a: Prepared, b: Prepared) -> None:
        if self.sketch is None:
            super()._check_pair(a, b)


def sketched(parts: Sequence[Tensor], size: int, chunks: int, seed: int) -> list[Tensor]:
    """Clarkson-Woodruff sketches S X (size, D) of every X (N, D), with one S drawn from `seed`.

    S is `chunks` blocks of size / chunks rows; in each, every input is added to one random row, with a random sign,
    divided by sqrt(chunks). Of fewer inputs it is the first columns of that of more.
    """
    count, height = len(parts[0]), size // chunks
    draws = np.random.default_rng(seed).random((count, chunks, 2))
    device = parts[0].device
    rows = torch.from_numpy((draws[..., 0] * height).astype(np.int64) + np.arange(chunks) * height).to(device)
    signs = torch.from_numpy(np.where(draws[..., 1] < 0.5, -1.0, 1.0) / math.sqrt(chunks)).to(device)
    result = []
    for X in parts:
        sums = X.new_zeros(size, X.shape[1])
        for row, sign in zip(rows.T, signs.T, strict=True):
            sums.index_add_(0, row, X * sign[:, None])
        result.append(sums)
    return result


@dataclass(frozen=True)
class GradientCKA(_WithGradients, Alignment):
    """CKA of features with their gradients, in [0, 1] (`debiased`: [-1, 1]), 1 = equal up to rotation and scale.

    <HKH, HLH> / (|HKH| |HLH|) with K = (F F') * (G G') for features F (N, D) and `gradients` G (N, any), rotated and
    scaled separately without effect; `debiased` leaves the diagonal out (U-centring; at least 4 rows). Biased upwards
    for few inputs.

    `sketch=M` replaces N inputs by M random signed sums of them (`chunks` sums each), drawn from `seed`, for features
    and gradients alike; then different numbers of inputs compare. It raises values (a DegenerateWarning says so):
    `baseline(...)` gives those of shuffled inputs. Raises ValueError for M < 4 or no multiple of `chunks`.

    Source: Tang, Maddox, Dickens, Diethe, Damianou 2020, Similarity of Neural Networks with Gradients,
    arXiv:2003.11498; Clarkson, Woodruff 2013 for the sketch.

    >>> g = torch.Generator().manual_seed(0)
    >>> F, G = torch.randn(30, 4, generator=g), torch.randn(30, 4, generator=g)
    >>> round(GradientCKA()(F, 2 * F, gradients=G), 4)
    1.0
    """

    debiased: bool = False

    id = "gradient_cka"
    cost = "prepare: the N x N kernel (sketch: M x M), O(N^2 (D + D')); pair: O(N^2)"

    def _prepare(self, X: Tensor, gradients: Tensor) -> Vector:
        K = self._kernel(X, gradients)
        trace = K.trace()
        return self._vector(centred_kernel_(K, self.debiased), trace)


@dataclass(frozen=True)
class GradientNBS(_WithGradients):
    """Normalised Bures similarity of features with their gradients, in [0, 1], 1 = equal up to rotation and scale.

    tr (K^1/2 L K^1/2)^1/2 / sqrt(tr K tr L) for the doubly centred K = (F F') * (G G'), features F (N, D) and
    `gradients` G (N, any); computed as a nuclear norm of factors of K and L. Its arccos is a metric. `sketch`,
    `chunks`, `seed`, `baseline(...)` and errors as for `gradient_cka`.

    Source: Tang, Maddox, Dickens, Diethe, Damianou 2020, Similarity of Neural Networks with Gradients,
    arXiv:2003.11498.

    >>> g = torch.Generator().manual_seed(0)
    >>> F, G = torch.randn(30, 4, generator=g), torch.randn(30, 4, generator=g)
    >>> round(GradientNBS()(F, 2 * F, gradients=G), 4)
    1.0
    """

    id = "gradient_nbs"
    cost = (
        "prepare: a factor of the N x N kernel (sketch: M x M) of rank r, O(N^2 (D + D') + N^3); pair: singular values "
        "of an r x r' product, O(N r r' + r^3)"
    )

    def _prepare(self, X: Tensor, gradients: Tensor) -> Shape:
        K = self._kernel(X, gradients)
        trace = K.trace()
        values, vectors = torch.linalg.eigh(centred_kernel_(K))
        noise = len(K) * torch.finfo(K.dtype).eps
        total = values.clamp(min=0).sum()
        if total <= 16 * noise * trace:
            return Shape(K.new_zeros(len(K), 1), K.new_zeros(()))
        above = values > noise * values[-1]
        factor = vectors[:, above] * values[above].sqrt()
        norm = torch.linalg.vector_norm(factor)
        return Shape(factor / norm, norm)

    def _compare(self, a: Shape, b: Shape) -> Tensor:
        return torch.where((a.norm > 0) & (b.norm > 0), (1 - gap(a.rows, b.rows)).clamp(0.0, 1.0), math.nan)
