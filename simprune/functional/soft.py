"""Measures of the predicted class probabilities."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from simprune.functional._base import FunctionalMeasure, Outputs


@dataclass(frozen=True)
class JensenShannonDivergence(FunctionalMeasure):
    """Mean over samples of [KL(p||m) + KL(q||m)] / 2, m = (p + q) / 2, in [0, log_base 2]; 0 means equal.

    `base=2` gives bits, `base=math.e` nats. (Not its square root, the distance.) ValueError unless base > 1.

    >>> f = JensenShannonDivergence()
    >>> f(Outputs.from_probabilities([[1.0, 0.0]]), Outputs.from_probabilities([[0.0, 1.0]]))
    1.0
    """

    base: float = 2

    id = "jensen_shannon_divergence"
    symmetric = True
    kind = "mean"
    source = "Lin (1991), Divergence measures based on the Shannon entropy"

    def __post_init__(self) -> None:
        if not isinstance(self.base, int | float) or not 1 < self.base < math.inf:
            raise ValueError(f"base of the logarithm must be a finite number > 1; got {self.base!r}")

    @property
    def range(self) -> tuple[float, float]:
        return 0.0, math.log(2) / math.log(self.base)

    def _rows(self, outputs: tuple[Outputs, ...], labels: Tensor | None) -> Tensor:
        p, q = (item.probabilities for item in outputs)
        middle = ((p + q) / 2).clamp_min(torch.finfo(p.dtype).tiny)  # half of the smallest number would be 0
        p_nats, q_nats = ((torch.xlogy(r, r) - torch.xlogy(r, middle)).sum(1) for r in (p, q))
        return ((p_nats + q_nats) / 2 / math.log(self.base)).clamp(*self.range)  # rounding may step just outside
