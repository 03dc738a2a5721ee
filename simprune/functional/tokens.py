"""Token logits of language models, (N, T, C), with labels (N, T); padding and positions labelled -100 do not count.

The label of a position is the token that its logits predict. With `shift=True` labels are the input tokens
themselves, as transformers takes them: the logits at t predict the label at t + 1. Scores are means over all tokens.
The tokens of one sequence, or of one document where documents are known, are not independent: these are the samples
that confidence bounds count.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simprune.functional._base import FunctionalMeasure, Outputs, Score, finite, integers
from simprune.functional.soft import kl_rows

IGNORE = -100
CHUNK = 1 << 22  # logits that are in float64 at once
NOWHERE = -1.0  # the document of a sequence that nothing is known of


@dataclass(frozen=True, eq=False)
class TokenTargets:
    """What is known of the tokens (N, T) of a batch beside the logits; measures of tokens take it as their labels.

    Args:
        labels: class indices, -100 where a token does not count.
        mask: true for tokens and false for padding, which does not count.
        documents: the number of the document of every token.

    >>> a, b = torch.zeros(1, 2, 2), torch.tensor([[[0.0, 0.0], [3.0, 0.0]]])
    >>> TokenKLDivergence()(a, b, TokenTargets(mask=torch.tensor([[True, False]])))
    0.0
    """

    labels: Any = None
    mask: Any = None
    documents: Any = None


@dataclass(frozen=True)
class _Truth:
    """Validated targets of one batch."""

    labels: Tensor | None
    mask: Tensor  # true where a token counts, by its label and as no padding
    documents: Tensor | None


@dataclass(frozen=True)
class _Tokens(FunctionalMeasure):
    """Sums over the tokens of every sequence, or of every document in a sequence.

    Rows are (sequences or more, figures + 2); the last two columns are the number of tokens and the document's number.
    """

    shift: bool = False

    form = "tokens"
    source = "mean over tokens"

    def _output(self, value: Any, what: str) -> Tensor:
        expected = "(N, T, C) with N, T >= 1 and C >= 2 tokens"
        return finite(value, what, expected, lambda x: x.ndim == 3 and x.shape[2] >= 2, torch.float32)

    def _alike(self, sample: tuple[int, ...]) -> tuple[int, ...]:
        return sample[1:]  # sequences of one batch may be longer than those of another

    def _truth(self, labels: Any, shape: tuple[int, ...]) -> _Truth:  # pyright: ignore[reportIncompatibleMethodOverride]
        targets = labels if isinstance(labels, TokenTargets) else TokenTargets(labels)
        if targets.labels is None and self.needs_labels:
            raise ValueError(f"{self.id} needs labels; pass labels=(N, T) integer class indices")
        known = None if targets.labels is None else integers(targets.labels, shape[:2], shape[2], IGNORE)
        counts = torch.ones(shape[:2], dtype=torch.bool) if known is None else known != IGNORE
        mask = torch.ones_like(counts) if targets.mask is None else torch.as_tensor(targets.mask).bool().cpu()
        documents = None if targets.documents is None else torch.as_tensor(targets.documents).cpu()
        for name, value in (("mask", mask), ("documents", documents)):
            if value is not None and value.shape != shape[:2]:
                raise ValueError(f"{name} must have shape {tuple(shape[:2])}; got {tuple(value.shape)}")
        if self.shift:  # neither the token that predicts nor the predicted one is padding
            counts = counts[:, 1:] & mask[:, 1:] & mask[:, :-1]
            known, documents = (None if value is None else value[:, 1:] for value in (known, documents))
        else:
            counts = counts & mask
        return _Truth(known, counts, documents)

    def _rows(self, outputs: tuple[Tensor, ...], labels: _Truth | None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        truth = self._truth(None, tuple(outputs[0].shape)) if labels is None else labels
        if self.shift:
            outputs = tuple(logits[:, :-1] for logits in outputs)
        count, classes = len(outputs[0]), outputs[0].shape[2]
        piece, owner = _pieces(truth.documents, truth.mask)
        sequence, position = truth.mask.nonzero(as_tuple=True)
        step = max(1, CHUNK // classes)
        sums: list[Tensor] = []
        for index in zip(sequence.split(step), position.split(step), strict=True):
            a, b = (Outputs(logits[index].double()) for logits in outputs)
            figures = self._figures(a, b, None if truth.labels is None else truth.labels[index])
            sums = sums or [torch.zeros(len(owner), dtype=torch.float64) for _ in figures]
            for total, figure in zip(sums, figures, strict=True):
                total.index_add_(0, piece[index], figure)
        tokens = torch.zeros(len(owner), dtype=torch.float64).index_add_(0, piece[truth.mask], _ones(truth.mask))
        return torch.stack([*sums, tokens, owner], 1) if sums else self._empty(count)

    def _empty(self, count: int) -> Tensor:
        """Rows of sequences in which no token counts."""
        rows = torch.zeros(count, self.figures + 2, dtype=torch.float64)
        rows[:, -1] = NOWHERE
        return rows

    figures = 1  # columns of sums

    def _figures(self, a: Outputs, b: Outputs, labels: Any) -> list[Tensor]:
        raise NotImplementedError

    def of_means(self, means: np.ndarray) -> np.ndarray:
        """The score (...) from the means (..., figures) of the sums over all tokens."""
        return means[..., 0]

    def slopes(self, means: np.ndarray) -> np.ndarray:
        """The derivative (..., figures) of `of_means`, from which confidence bounds follow."""
        return np.ones_like(means)

    def reduce(self, rows: Tensor) -> Score:
        *sums, tokens, _ = rows.sum(0).tolist()
        details: dict[str, Any] = {"tokens": int(tokens)}
        if not tokens:
            reason = f"no token counts; all are padding or labelled {IGNORE}"
            return self._undefined(rows, reason, **details)
        return self._score(samples_of(rows), [total / tokens for total in sums], details)

    def _score(self, count: int, means: list[float], details: dict[str, Any]) -> Score:
        return Score(float(self.of_means(np.array(means))), count=count, details=details)


def _pieces(documents: Tensor | None, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The row (N, T) that every token adds to, and the document of every row; a row per sequence without documents."""
    count, length = mask.shape
    if documents is None:
        rows = torch.arange(count)[:, None].expand(count, length)
        return rows, torch.full((count,), NOWHERE, dtype=torch.float64)
    pairs = torch.stack([torch.arange(count)[:, None].expand(count, length), documents.long()], -1)
    unique, inverse = torch.unique(pairs[mask], dim=0, return_inverse=True)
    rows = torch.zeros(count, length, dtype=torch.int64)
    rows[mask] = inverse
    return rows, unique[:, 1].double()


def _ones(mask: Tensor) -> Tensor:
    return torch.ones(int(mask.sum()), dtype=torch.float64)


def samples_of(rows: Tensor) -> int:
    """Number of sequences, or of documents where these are known.

    >>> samples_of(torch.tensor([[0.0, 5.0, 7.0], [0.0, 5.0, 7.0], [0.0, 5.0, 8.0]]))
    2
    """
    return len(clustered(rows))


def clustered(rows: Tensor) -> Tensor:
    """Rows (samples, figures + 1): the sums of every document, and the rows of sequences whose document is unknown."""
    known = rows[:, -1] != NOWHERE
    numbers, inverse = torch.unique(rows[known, -1], return_inverse=True)
    sums = torch.zeros(len(numbers), rows.shape[1] - 1, dtype=rows.dtype).index_add_(0, inverse, rows[known, :-1])
    return torch.cat([rows[~known, :-1], sums])


@dataclass(frozen=True)
class TokenKLDivergence(_Tokens):
    """Mean over tokens of KL(p||q) in nats, p of a and q of b, in [0, inf); 0 means equal.

    Logits (N, T, C); labels (N, T), if any, only tell which tokens count (not -100). `details`: "tokens".

    >>> a, b = torch.zeros(1, 3, 2), torch.tensor([[[0.0, 0.0], [0.0, 0.0], [3.0, 0.0]]])
    >>> round(TokenKLDivergence()(a, b), 4), TokenKLDivergence()(a, b, labels=[[0, 1, -100]])
    (0.2851, 0.0)
    """

    id = "token_kl_divergence"
    range = (0.0, math.inf)

    def _figures(self, a: Outputs, b: Outputs, labels: Any) -> list[Tensor]:
        return [kl_rows(a, b)]


@dataclass(frozen=True)
class TokenAgreement(_Tokens):
    """Share of tokens at which both models' most likely token is the same, in [0, 1]; 1 means the same ones.

    Logits (N, T, C); labels (N, T), if any, only tell which tokens count (not -100). `details`: "tokens".

    >>> TokenAgreement()(torch.tensor([[[0.0, 1.0], [0.0, 1.0]]]), torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]))
    0.5
    """

    id = "token_agreement"
    larger_is_more_similar = True
    symmetric = True

    def _figures(self, a: Outputs, b: Outputs, labels: Any) -> list[Tensor]:
        return [(a.classes == b.classes).double()]


class _Perplexity(_Tokens):
    """A change of exp of the mean -log p_label over tokens; the figures are that of a, and what b has more."""

    needs_labels = True
    figures = 2

    def _figures(self, a: Outputs, b: Outputs, labels: Any) -> list[Tensor]:
        losses = [-item.log_probabilities.gather(1, labels[:, None])[:, 0] for item in (a, b)]
        return [losses[0], losses[1] - losses[0]]  # exactly zero where both are equal

    def _score(self, count: int, means: list[float], details: dict[str, Any]) -> Score:
        first, more = means
        with np.errstate(over="ignore", invalid="ignore"):
            a, b, ratio = np.exp([first, first + more, more]).tolist()  # infinite where math.exp would raise
            value = float(self.of_means(np.array(means)))
        details |= {"original": a, "pruned": b, "ratio": ratio}
        reason = f"{self.id}: both perplexities are infinite" if math.isnan(value) else ""
        return Score(value, count=count, reason=reason, details=details)


@dataclass(frozen=True)
class PerplexityChange(_Perplexity):
    """Perplexity of b minus that of a, exp of the mean -log p_label over tokens; positive if b is worse.

    Logits (N, T, C), labels (N, T), -100 where a token does not count. `details`: "original", "pruned", "ratio",
    "tokens". Undefined where both are infinite.

    >>> a, b = torch.tensor([[[0.0, 99.0]]]), torch.zeros(1, 1, 2)
    >>> round(PerplexityChange()(a, b, labels=[[1]]), 4)  # 2 - 1
    1.0
    """

    id = "perplexity_change"
    range = (-math.inf, math.inf)

    def of_means(self, means: np.ndarray) -> np.ndarray:
        return np.exp(means.sum(-1)) - np.exp(means[..., 0])

    def slopes(self, means: np.ndarray) -> np.ndarray:
        a = np.exp(means[..., 0])
        return np.stack([a * np.expm1(means[..., 1]), a * np.exp(means[..., 1])], -1)


@dataclass(frozen=True)
class PerplexityIncrease(_Perplexity):
    """Perplexity of b as a share of that of a, minus 1, in (-1, inf): 0.05 means a perplexity ratio of 1.05.

    Logits (N, T, C), labels (N, T), -100 where a token does not count. `details`: "ratio", "original", "pruned",
    "tokens".

    >>> a, b = torch.tensor([[[0.0, 99.0]]]), torch.zeros(1, 1, 2)
    >>> round(PerplexityIncrease()(a, b, labels=[[1]]), 4)  # 2 / 1 - 1
    1.0
    """

    id = "perplexity_increase"
    range = (-1.0, math.inf)

    def of_means(self, means: np.ndarray) -> np.ndarray:
        return np.expm1(means[..., 1])

    def slopes(self, means: np.ndarray) -> np.ndarray:
        return np.stack([np.zeros_like(means[..., 0]), np.exp(means[..., 1])], -1)
