"""Outputs that are not class scores.

Embeddings and regression are (N, D); other shapes (N, ...) are flattened. With `pooling` "mean" or "first" the tokens
(N, T, D) of a text become one embedding. Outputs with several labels per sample have
one logit per label, (N, L).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simprune.core.neighbours import nearest
from simprune.functional._base import FunctionalMeasure, Score, finite


class _Vectors(FunctionalMeasure):
    """A measure of output vectors; labels of the samples are not used."""

    form = "vectors"
    symmetric = True

    def _output(self, value: Any, what: str) -> Tensor:
        rows = finite(value, what.replace("logits", "outputs"), "(N, D) with N >= 1 samples", lambda x: x.ndim >= 1)
        return rows.reshape(len(rows), -1)

    def _truth(self, labels: Any, shape: tuple[int, ...]) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class _Embeddings(_Vectors):
    """A measure of one vector per sample, which may be pooled from the vectors of its tokens (N, T, D)."""

    pooling: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.pooling in POOLINGS, f"pooling must be mean, first or empty; got {self.pooling!r}")

    def _output(self, value: Any, what: str) -> Tensor:
        if self.pooling:
            value = torch.as_tensor(value)
            if value.ndim == 3:
                value = pooled(value, self.pooling)
        return super()._output(value, what)


POOLINGS = ("", "mean", "first")


def pooled(tokens: Tensor, pooling: str) -> Tensor:
    """(N, D) the mean or the first of the tokens (N, T, D) of every sample; zero vectors, as of padding, do not count.

    >>> pooled(torch.tensor([[[1.0], [3.0], [0.0]]]), "mean")
    tensor([[2.]])
    """
    real = (tokens != 0).any(2)
    if pooling == "mean":
        return tokens.sum(1) / real.sum(1, keepdim=True).clamp(min=1)
    return tokens[torch.arange(len(tokens)), real.long().argmax(1)]


def _unit(rows: Tensor) -> Tensor:
    """Rows divided by their largest magnitude, so that squares neither overflow nor vanish; zero rows stay."""
    return rows / rows.abs().amax(1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)


@dataclass(frozen=True)
class CosineAgreement(_Embeddings):
    """Mean over samples of the cosine of a's and b's output vectors, in [-1, 1]; 1 means the same directions.

    Samples with a zero vector are skipped.

    >>> CosineAgreement()([[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [1.0, 0.0]])
    0.5
    """

    id = "cosine_agreement"
    range = (-1.0, 1.0)
    larger_is_more_similar = True
    kind = "mean"
    skips = "every sample has a zero vector"
    source = "mean cosine similarity of paired outputs"

    def _rows(self, outputs: tuple[Tensor, ...], labels: Tensor | None) -> Tensor:
        a, b = map(_unit, outputs)
        product = (a.square().sum(1) * b.square().sum(1)).sqrt()
        return ((a * b).sum(1) / product).clamp(-1, 1)  # zero vector: 0/0 is NaN, which is skipped


@dataclass(frozen=True)
class RelativeError(_Embeddings):
    """Distance of b's outputs from a's, |A - B| / |A| in Frobenius norms, in [0, inf]; 0 means equal.

    Where all of a's outputs are zero: undefined if b's are too, else infinite, with a reason.

    >>> RelativeError()([[3.0], [4.0]], [[3.0], [9.0]])
    1.0
    """

    id = "relative_error"
    range = (0.0, math.inf)
    symmetric = False
    source = "relative Frobenius norm of the difference"

    def _rows(self, outputs: tuple[Tensor, ...], labels: Tensor | None) -> Tensor:
        a, b = outputs
        return torch.stack([torch.linalg.vector_norm(a - b, dim=1), torch.linalg.vector_norm(a, dim=1)], 1)

    def reduce(self, rows: Tensor) -> Score:
        error, size = torch.linalg.vector_norm(rows, dim=0).tolist()
        if size:
            return Score(error / size, count=len(rows))
        return self._undefined(rows, "all outputs of the first model are zero", math.inf if error else math.nan)


@dataclass(frozen=True)
class NeighbourOverlap(_Embeddings):
    """Mean share of a sample's k nearest neighbours in a that are so in b too, in [0, 1]; 1 means the same ones.

    Nearest by cosine, among the other samples, so it needs all of them at once; cosines equal up to rounding go by
    the lower index. Samples with a zero vector are skipped. ValueError unless 1 <= k < N.

    >>> a = [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]]
    >>> NeighbourOverlap(k=1)(a, [a[0], a[2], a[1], a[3]])
    0.0
    """

    k: int = 10

    id = "neighbour_overlap"
    larger_is_more_similar = True
    kind = "mean"
    streams = False
    skips = "every sample has a zero vector"
    source = "Klabunde et al., arXiv 2305.06329, section 4.3 (k-nearest neighbours), as a share of k"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.k >= 1, f"at least one neighbour is needed, got k={self.k}")

    def _rows(self, outputs: tuple[Tensor, ...], labels: Tensor | None) -> Tensor:
        count = len(outputs[0])
        if count <= self.k:
            raise ValueError(f"{self.id} with k={self.k} needs more than {self.k} samples; got {count}")
        a, b = (nearest(_unit(rows), self.k)[0].sort(1).values for rows in outputs)
        index = torch.searchsorted(b, a).clamp_max(self.k - 1)
        shared = (b.gather(1, index) == a).double().mean(1)
        zero = torch.stack([(rows == 0).all(1) for rows in outputs]).any(0)
        return shared.masked_fill(zero, math.nan)


@dataclass(frozen=True)
class RepresentationalSimilarity(_Vectors):
    """Any similarity of representations, applied to the outputs (N, D): `measure(A, B)`, a function giving a number.

    Such as `simprune.measures.get("cka_debiased")`; its direction, range and symmetry are taken from it where it
    states them. All outputs are stored: memory is that of the outputs.

    >>> f = RepresentationalSimilarity(lambda A, B: float((A - B).abs().max()))
    >>> f([[1.0], [2.0]], [[1.0], [5.0]])
    3.0
    """

    measure: Callable[[Tensor, Tensor], float]

    id = "representational_similarity"
    range = (-math.inf, math.inf)
    symmetric = False
    source = "the measure's own"

    def __post_init__(self) -> None:
        super().__post_init__()
        traits = ("range", "larger_is_more_similar", "symmetric")
        self._declare(**{name: getattr(self.measure, name) for name in traits if hasattr(self.measure, name)})

    def _rows(self, outputs: tuple[Tensor, ...], labels: Tensor | None) -> Tensor:
        return torch.stack(outputs, 1)

    def reduce(self, rows: Tensor) -> Score:
        value = float(self.measure(rows[:, 0], rows[:, 1]))
        if math.isnan(value):
            return self._undefined(rows, "the measure of representations is undefined for these outputs")
        return Score(value, count=len(rows))


@dataclass(frozen=True)
class LabelwiseDisagreement(_Vectors):
    """Mean over samples and labels of whether the two decisions differ (Hamming), in [0, 1]; 0 means the same.

    Logits (N, L); a label is predicted where the sigmoid of its logit exceeds `threshold`. `details`: "labels", every
    label's disagreement, and "largest". Labels of the samples are not used. ValueError unless 0 < threshold < 1.

    >>> score = LabelwiseDisagreement()([[1.0, -1.0], [1.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]])
    >>> score, score.details["labels"]
    (0.25, [0.0, 0.5])
    """

    threshold: float = 0.5

    id = "labelwise_disagreement"
    kind = "mean"
    form = "multilabel"
    source = "Hamming loss of one model against the other"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(0 < self.threshold < 1, f"threshold is a probability in (0, 1), got {self.threshold!r}")

    def _output(self, value: Any, what: str) -> Tensor:
        expected = "(N, L) with N >= 1 samples and L >= 1 labels"
        return finite(value, what, expected, lambda x: x.ndim == 2 and x.shape[1] >= 1)

    def _rows(self, outputs: tuple[Tensor, ...], labels: Tensor | None) -> Tensor:
        a, b = (logits.sigmoid() > self.threshold for logits in outputs)
        return (a != b).to(torch.int8)

    def values(self, rows: Tensor) -> Tensor:
        return rows.double().mean(1)

    def reduce(self, rows: Tensor) -> Score:
        score = super().reduce(rows)
        shares = (rows.sum(0) / len(rows)).tolist()
        score.details.update(labels=shares, largest=max(shares))
        return score
