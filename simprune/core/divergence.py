"""How far the probabilities of classes or tokens have moved."""

import torch.nn.functional as F
from torch import Tensor


def divergences(wanted: Tensor, current: Tensor) -> Tensor:
    """(rows,) Kullback-Leibler divergences, in nats, of the probabilities that (rows, classes) scores stand for.

    >>> scores = F.one_hot(Tensor([0, 1]).long(), 3).float()
    >>> divergences(scores, scores + 7)
    tensor([0., 0.])
    """
    before, after = (F.log_softmax(scores.float(), -1) for scores in (wanted, current))
    return (before.exp() * (before - after)).sum(-1)
