"""Token logits of language models, (N, T, C), with labels (N, T); positions labelled -100 do not count.

The label of a position is the token that its logits predict. With `shift=True` labels are the input tokens
themselves, as transformers takes them: the logits at t predict the label at t + 1. A sample, for confidence bounds
too, is a sequence; scores are means over all tokens.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simprune.functional._base import FunctionalMeasure, Outputs, Score, finite, integers
from simprune.functional.soft import kl_rows

IGNORE = -100
CHUNK = 1 << 22  # logits that are in float64 at once


@dataclass(frozen=True)
class _Tokens(FunctionalMeasure):
    """Sums over the tokens of every sequence; rows are (N, figures + 1), the last column the number of tokens."""

    shift: bool = False

    form = "tokens"
    source = "mean over tokens"

    def _output(self, value: Any, what: str) -> Tensor:
        expected = "(N, T, C) with N, T >= 1 and C >= 2 tokens"
        return finite(value, what, expected, lambda x: x.ndim == 3 and x.shape[2] >= 2, torch.float32)

    def _truth(self, labels: Any, shape: tuple[int, ...]) -> Tensor:
        return integers(labels, shape[:2], shape[2], IGNORE)

    def _rows(self, outputs: tuple[Tensor, ...], labels: Tensor | None) -> Tensor:
        if self.shift:
            outputs = tuple(logits[:, :-1] for logits in outputs)
            labels = None if labels is None else labels[:, 1:]
        count, length, classes = outputs[0].shape
        counts = torch.ones(count, length, dtype=torch.bool) if labels is None else labels != IGNORE
        sequence, position = counts.nonzero(as_tuple=True)
        sums: list[Tensor] = []
        step = max(1, CHUNK // classes)
        for index in zip(sequence.split(step), position.split(step), strict=True):
            a, b = (Outputs(logits[index].double()) for logits in outputs)
            figures = self._figures(a, b, None if labels is None else labels[index])
            sums = sums or [torch.zeros(count, dtype=torch.float64) for _ in figures]
            for total, figure in zip(sums, figures, strict=True):
                total.index_add_(0, index[0], figure)
        return torch.stack([*sums, counts.sum(1).double()], 1)

    def _figures(self, a: Outputs, b: Outputs, labels: Any) -> list[Tensor]:
        raise NotImplementedError

    def reduce(self, rows: Tensor) -> Score:
        *sums, tokens = rows.sum(0).tolist()
        details = {"tokens": int(tokens)}
        if not tokens:
            return self._undefined(rows, f"no token counts; all labels are {IGNORE}", **details)
        return self._score(rows, [total / tokens for total in sums], details)

    def _score(self, rows: Tensor, means: list[float], details: dict[str, Any]) -> Score:
        return Score(means[0], count=len(rows), details=details)


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


@dataclass(frozen=True)
class PerplexityChange(_Tokens):
    """Perplexity of b minus that of a, exp of the mean -log p_label over tokens; positive if b is worse.

    Logits (N, T, C), labels (N, T), -100 where a token does not count. `details`: "original", "pruned", "tokens".
    Undefined where both are infinite.

    >>> a, b = torch.tensor([[[0.0, 99.0]]]), torch.zeros(1, 1, 2)
    >>> round(PerplexityChange()(a, b, labels=[[1]]), 4)  # 2 - 1
    1.0
    """

    id = "perplexity_change"
    range = (-math.inf, math.inf)
    needs_labels = True

    def _figures(self, a: Outputs, b: Outputs, labels: Any) -> list[Tensor]:
        return [-item.log_probabilities.gather(1, labels[:, None])[:, 0] for item in (a, b)]

    def _score(self, rows: Tensor, means: list[float], details: dict[str, Any]) -> Score:
        a, b = torch.tensor(means, dtype=torch.float64).exp().tolist()  # infinite where math.exp would raise
        details |= {"original": a, "pruned": b}
        if math.isnan(b - a):
            return self._undefined(rows, "both perplexities are infinite", **details)
        return Score(b - a, count=len(rows), details=details)
