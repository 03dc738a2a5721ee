"""Measures of the predicted class probabilities; logits go through the softmax first."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from simprune.functional._base import FunctionalMeasure, Outputs, Score
from simprune.functional.hard import SURVEY

CHUNK = 1 << 22  # probabilities of all models that are in memory at once
TOLERANCE = 1e-11  # nats, of a channel's capacity
ITERATIONS = 100  # that the search of a capacity takes at most


class _Soft(FunctionalMeasure):
    """A mean over samples."""

    range = (0.0, math.inf)
    symmetric = True
    kind = "mean"
    source = SURVEY


class _Norm(_Soft):
    """A mean of p-norms."""

    p: float
    share: ClassVar[float] = 1  # of the largest norm

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.p >= 1, f"p of the norm must be >= 1 or infinity, got {self.p!r}")
        self._declare(range=(0.0, self.share * 2 ** (1 / self.p)))

    def _norm(self, rows: Tensor) -> Tensor:
        return torch.linalg.vector_norm(rows, ord=self.p, dim=-1).clamp_max(2 ** (1 / self.p))


@dataclass(frozen=True)
class PredictionNormDifference(_Norm):
    """Half the mean p-norm of the difference of class probabilities, in [0, 2^(1/p) / 2]; 0 means equal.

    p=1: mean total variation. ValueError unless p >= 1.

    >>> a, b = (Outputs.from_probabilities([row]) for row in ([1.0, 0.0], [0.0, 1.0]))
    >>> round(PredictionNormDifference()(a, b), 4), PredictionNormDifference(p=1)(a, b)
    (0.7071, 1.0)
    """

    p: float = 2

    id = "prediction_norm_difference"
    range = (0.0, math.sqrt(0.5))
    share = 0.5

    def _rows(self, outputs: tuple[Outputs, ...], labels: Tensor | None) -> Tensor:
        a, b = outputs
        return self.share * self._norm(a.probabilities - b.probabilities)


@dataclass(frozen=True)
class PredictionDifference(_Norm):
    """Mean p-norm between each model's class probabilities and the models' mean, in [0, 2^(1/p)]; 0 means equal.

    Of two models with p=1 it is the mean total variation. ValueError unless p >= 1.

    >>> a, b = (Outputs.from_probabilities([row]) for row in ([1.0, 0.0], [0.0, 1.0]))
    >>> PredictionDifference()(a, b)
    1.0
    """

    p: float = 1

    id = "prediction_difference"
    range = (0.0, 2.0)
    models = (2, None)

    def _rows(self, outputs: tuple[Outputs, ...], labels: Tensor | None) -> Tensor:
        first, *others = (item.probabilities for item in outputs)
        middle = first + sum(other - first for other in others) / len(outputs)  # exact where all are equal
        return torch.stack([self._norm(item.probabilities - middle) for item in outputs]).mean(0)


@dataclass(frozen=True)
class SurrogateChurn(_Soft):
    """Half the mean L1 distance of (p / max p)^alpha, in [0, C/2]; 0 means equal.

    Tends to `disagreement` for large alpha, ties aside. ValueError unless alpha > 0.

    >>> a, b = (Outputs.from_probabilities([row]) for row in ([0.8, 0.2], [0.5, 0.5]))
    >>> round(SurrogateChurn()(a, b), 4)
    0.375
    """

    alpha: float = 1

    id = "surrogate_churn"
    source = "Bhojanapalli et al. (2021), On the Reproducibility of Neural Network Predictions, arXiv 2102.03349"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(0 < self.alpha < math.inf, f"alpha must be positive and finite, got {self.alpha!r}")

    def _rows(self, outputs: tuple[Outputs, ...], labels: Tensor | None) -> Tensor:
        logs = (item.log_probabilities for item in outputs)
        a, b = ((self.alpha * (log - log.amax(1, keepdim=True))).exp() for log in logs)
        return (a - b).abs().sum(1) / 2


@dataclass(frozen=True)
class JensenShannonDivergence(_Soft):
    """Mean over samples of [KL(p||m) + KL(q||m)] / 2, m = (p + q) / 2, in [0, log_base 2]; 0 means equal.

    `base=2` gives bits, `base=math.e` nats. (Not its square root, the distance.) ValueError unless base > 1.

    >>> f = JensenShannonDivergence()
    >>> f(Outputs.from_probabilities([[1.0, 0.0]]), Outputs.from_probabilities([[0.0, 1.0]]))
    1.0
    """

    base: float = 2

    id = "jensen_shannon_divergence"
    range = (0.0, 1.0)
    source = "Lin (1991), Divergence measures based on the Shannon entropy"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(1 < self.base < math.inf, f"base of the logarithm must be a finite number > 1; got {self.base!r}")
        self._declare(range=(0.0, math.log(2) / math.log(self.base)))

    def _rows(self, outputs: tuple[Outputs, ...], labels: Tensor | None) -> Tensor:
        p, q = (item.probabilities for item in outputs)
        middle = ((p + q) / 2).clamp_min(torch.finfo(p.dtype).tiny)  # half of the smallest number would be 0
        p_nats, q_nats = ((torch.xlogy(r, r) - torch.xlogy(r, middle)).sum(1) for r in (p, q))
        return ((p_nats + q_nats) / 2 / math.log(self.base)).clamp(*self.range)  # rounding may step just outside


@dataclass(frozen=True)
class KLDivergence(_Soft):
    """Mean over samples of KL(p||q) in nats, p of a and q of b, in [0, inf]; 0 means equal.

    Infinite where q gives no probability at all to a class that p gives some (not possible with finite logits).

    >>> a, b = (Outputs.from_probabilities([row]) for row in ([1.0, 0.0], [0.5, 0.5]))
    >>> round(KLDivergence()(a, b), 4), KLDivergence()(b, a)
    (0.6931, inf)
    """

    id = "kl_divergence"
    symmetric = False
    source = "Kullback, Leibler (1951); Dutta et al. (2024), arXiv 2407.09141"

    def _rows(self, outputs: tuple[Outputs, ...], labels: Tensor | None) -> Tensor:
        return kl_rows(*outputs)


def kl_rows(a: Outputs, b: Outputs) -> Tensor:
    """KL(p||q) in nats of every sample, (N,)."""
    p = a.probabilities
    terms = p * (a.log_probabilities - b.log_probabilities)
    return torch.where(p > 0, terms, 0.0).sum(1).clamp_min(0)  # rounding may step just outside


@dataclass(frozen=True)
class RashomonCapacity(_Soft):
    """Mean over samples of 2^capacity of the channel model -> class, in [1, min(C, m)]; 1 means equal.

    The capacity, in bits, is the largest mean of KL(p_model || q) over weights of the models, q the weighted mean:
    how many classes the models spread over. Never smaller for more models. `details["gap"]`: the largest distance of
    a sample's value from the proven upper bound, below 1e-9 unless the iteration limit was reached.

    >>> a, b = (Outputs.from_probabilities([row]) for row in ([1.0, 0.0], [0.0, 1.0]))
    >>> round(RashomonCapacity().group([a, b, b]), 9)
    2.0
    """

    id = "rashomon_capacity"
    range = (1.0, math.inf)
    models = (2, None)
    source = "Hsu, Calmon (2022), Rashomon Capacity, arXiv 2206.01295"

    def _rows(self, outputs: tuple[Outputs, ...], labels: Tensor | None) -> Tensor:
        step = max(1, CHUNK // (len(outputs) * outputs[0].shape[1]))
        rows = []
        for chunk in zip(*(item.probabilities.split(step) for item in outputs), strict=True):
            lower, upper = _capacity(torch.stack(chunk, 1))
            rows.append(torch.stack([lower.exp(), upper.exp() - lower.exp()], 1))
        return torch.cat(rows)

    def reduce(self, rows: Tensor) -> Score:
        score = super().reduce(rows)
        score.details["gap"] = rows[:, 1].max().item()
        return score


def _capacity(p: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds (N,) in nats of the capacity of N channels p (N, m inputs, C outputs), float64.

    Maximizes I(w) = sum_j w_j D_j, D_j = KL(p_j || sum_k w_k p_k), over weights w by primal-dual interior-point
    steps: the alternating updates of Blahut and Arimoto take thousands where the inputs are alike, these about
    twenty. For all w the capacity lies between I(w) and max_j D_j.
    """
    count, m, _ = p.shape
    own = torch.xlogy(p, p).sum(2)
    tiny = torch.finfo(p.dtype).tiny
    w = p.new_full((count, m), 1 / m)
    best = [p.new_zeros(count), p.new_full((count,), torch.inf)]
    slack = None
    todo = torch.arange(count)
    for _ in range(ITERATIONS):
        q = (w[:, :, None] * p).sum(1).clamp_min(tiny)
        divergence = (own - (p @ q.log()[:, :, None])[:, :, 0]).clamp_min(0)
        lower, upper = (w * divergence).sum(1), divergence.amax(1)
        best[0][todo] = torch.maximum(best[0][todo], lower)
        best[1][todo] = torch.minimum(best[1][todo], upper)
        slack = (upper[:, None] - divergence + upper[:, None]) if slack is None else slack
        open_ = best[1][todo] - best[0][todo] > TOLERANCE
        if not open_.any():
            break
        todo, p, own, w, slack, q, divergence = (x[open_] for x in (todo, p, own, w, slack, q, divergence))
        w, slack = _step(p, w, slack, q, divergence)
    # bounds from equal inputs may cross by rounding
    return best[0], torch.maximum(best[0], best[1])


def _step(p: Tensor, w: Tensor, slack: Tensor, q: Tensor, divergence: Tensor) -> tuple[Tensor, Tensor]:
    """One Newton step towards slack_j = max D - D_j, slack_j w_j = target, where w and slack stay positive."""
    target = (0.1 * (slack * w).mean(1, keepdim=True)).clamp_min(TOLERANCE / 1000)
    # changes sum to 0, so neither taking q from all rows nor adding to all entries matters, except for rounding: the
    # first keeps entries as small as the rows' differences, the second fills the direction w, in which they vanish
    centred = (p - q[:, None, :]) / q.sqrt()[:, None, :]
    curvature = centred @ centred.mT + torch.diag_embed(slack / w)
    size = curvature.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    curvature = curvature + size * (1 + 1e-14 * torch.eye(w.shape[1], dtype=w.dtype))
    sides = torch.stack([divergence + target / w, torch.ones_like(w)], 2)
    solved = torch.linalg.solve_ex(curvature, sides).result
    towards, ones = solved.unbind(2)
    change = towards - towards.sum(1, keepdim=True) / ones.sum(1, keepdim=True) * ones
    slack_change = target / w - slack - slack / w * change
    w = w + _reach(w, change) * change
    return w / w.sum(1, keepdim=True), slack + _reach(slack, slack_change) * slack_change


def _reach(x: Tensor, change: Tensor) -> Tensor:
    """How far to go, at most 1, so that x stays positive, (N, 1)."""
    limit = torch.where(change < 0, -x / change, torch.inf).amin(1, keepdim=True)
    return (0.99 * limit).clamp_max(1)
