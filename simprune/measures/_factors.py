"""Factors of representations: orthonormal bases, few coordinates, and how far the best rotation brings two together."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from simprune.measures._base import DegenerateWarning, Measure
from simprune.measures._products import InnerProduct, Vector

NEAR = 1e-4  # below this, 1 - cosine has lost too many digits to be the difference of the two


class Basis(NamedTuple):
    """The thin SVD of X (N, D) without directions that are only rounding: X = U diag(s) Vt, r of them."""

    U: Tensor
    s: Tensor
    Vt: Tensor


def basis(X: Tensor) -> Basis:
    U, s, Vt = torch.linalg.svd(X, full_matrices=False)
    rank = int((s > max(X.shape) * torch.finfo(s.dtype).eps * s[0]).sum())
    return Basis(U[:, :rank], s[:rank], Vt[:rank])


def warn_if_spanning(measure: Measure, rank: int, count: int) -> None:
    """Warn if centred rows span every direction: then no other representation has a direction that they lack."""
    if rank >= count - 1:
        warnings.warn(
            f"{measure.id}: {count} rows of rank {rank} span every direction there is, so comparisons with them "
            "say nothing: use more rows than units",
            DegenerateWarning,
            stacklevel=6,
        )


class Shape(NamedTuple):
    """A representation up to rotation: `rows` (N, <= min(N, D)) of Frobenius norm 1 (or 0), and its `norm`."""

    rows: Tensor
    norm: Tensor


def coordinates(X: Tensor) -> Tensor:
    """A (N, <= min(N, D)) with A A' = X X': X itself, or where it is wider than tall its triangular factor."""
    count, width = X.shape
    if width <= count:
        return X
    if X.requires_grad:  # in a fixed basis of its rows: A A' changes with X as X X' does, also where rows depend
        return X @ torch.linalg.qr(X.detach().T).Q
    return torch.linalg.qr(X.T, mode="r").R.T


def shape(X: Tensor) -> Shape:
    rows = coordinates(X) if X.shape[1] else X.new_zeros(len(X), 1)
    largest = torch.linalg.vector_norm(rows, float("inf"))
    rows = rows / torch.where(largest > 0, largest, 1.0)
    norm = torch.linalg.vector_norm(rows)
    return Shape(rows / torch.where(norm > 0, norm, 1.0), norm * largest)


def gap(a: Tensor, b: Tensor) -> Tensor:
    """min over rotations Q of |a Q - b|^2 / 2 for a (N, c), b (N, d) of norm 1: one minus their nuclear cosine."""
    product = a.T @ b
    lost = 1 - torch.linalg.svdvals(product).sum()
    if lost > NEAR:
        return lost
    U, _, Vt = torch.linalg.svd(product, full_matrices=False)  # the difference itself is exact so near
    left, right = a @ U, b @ Vt.T
    parts = torch.cat([left - right, a - left @ U.T, b - right @ Vt], 1)
    return parts.square().sum() / 2


def angle(lost: Tensor) -> Tensor:
    """arccos(1 - lost), from the distance of unit vectors: keeps the digits of small angles."""
    return 2 * (lost / 2).sqrt().arcsin()


@dataclass(frozen=True)
class FactorProduct(InnerProduct):
    """`InnerProduct` of phi = F F' and psi = G G', held as `values = (F, G)`, each (N, <= min(N, D)).

    <F F', G G'> is |F' G|^2 for a pair; all pairs together form the N x N products where that is less work.
    """

    def _rows(self, item: Vector, start: int, stop: int) -> Tensor:
        F = item.values[0]
        return F[start:stop] @ F.T

    def _second_rows(self, item: Vector, start: int, stop: int) -> Tensor:
        G = item.values[1]
        return G[start:stop] @ G.T

    def _inner(self, a: Vector, b: Vector) -> Tensor:
        return (a.values[0].T @ b.values[1]).square().sum()

    def _matrix(self, items: Sequence[Vector]) -> Tensor:
        count = items[0].height
        widths = sum(item.values[0].shape[1] for item in items)
        if widths**2 / (2 if self.symmetric else 1) < count * (widths + len(items) ** 2):
            return Measure._matrix(self, items)
        return super()._matrix(items)
