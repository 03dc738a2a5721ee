"""Whether a network runs in training mode, in which some do more: they mask features, or ask for targets."""

import torch
from torch import nn

from simprune.core.cost import Example


def training_error(copy: nn.Module, example: Example) -> Exception | None:
    """What stops a pass in training mode; None where it runs.

    Args:
        copy: of a network; its training mode changes, and statistics of its BatchNorms move.
        example: its arguments.

    >>> class Masked(nn.Linear):
    ...     def forward(self, x):
    ...         return super().forward(x) * torch.ones(4) if self.training else super().forward(x)
    >>> example = ((torch.zeros(1, 2),), {})
    >>> training_error(Masked(2, 4), example) is None, type(training_error(Masked(2, 3), example)).__name__
    (True, 'RuntimeError')
    """
    args, kwargs = example
    copy.train()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            copy(*args, **kwargs)
        except Exception as error:  # a foreign forward pass may raise anything
            return error
    return None
