"""How far the probabilities of classes or tokens have moved."""

import torch
import torch.nn.functional as F
from torch import Tensor


def divergences(wanted: Tensor, current: Tensor) -> Tensor:
    """(rows,) Kullback-Leibler divergences, in nats, of the probabilities that (rows, classes) scores stand for.

    >>> scores = F.one_hot(Tensor([0, 1]).long(), 3).float()
    >>> divergences(scores, scores + 7)
    tensor([0., 0.])
    """
    return divergences_from(F.log_softmax(wanted.float(), -1), current)


def divergences_from(wanted: Tensor, current: Tensor) -> Tensor:
    """As `divergences`, from the logarithms of the wanted probabilities: those of 50,000 tokens take a while.

    >>> even = torch.tensor([[0.5, 0.5]])
    >>> round(float(divergences_from(even.log(), torch.tensor([[0.75, 0.25]]).log())), 4)
    0.1438
    """
    moved = F.log_softmax(current.float(), -1)
    torch.sub(wanted, moved, out=moved)
    return moved.mul_(wanted.exp()).sum(-1)
