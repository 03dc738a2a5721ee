"""BatchNorm: its statistics are estimated again, from what it gets in the pruned network."""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from simprune.core.batches import call, checked
from simprune.core.registry import register
from simprune.repair._task import Task
from simprune.repair.refit import Refit
from simprune.trace.context import eval_mode

NORMS = nn.modules.batchnorm._BatchNorm


@register("repair", "bn", title="BatchNorm re-estimated", order=2)
def batchnorm(task: Task) -> list[Refit]:
    """The running mean and variance of every BatchNorm become the average over the calibration batches."""
    reestimate_batchnorm(task.small, task.batches, task.chosen)
    return []


def reestimate_batchnorm(
    model: nn.Module, batches: Iterable, chosen: Callable[[str], bool] = lambda _: True
) -> nn.Module:
    """Set the running mean and variance of chosen BatchNorms to the average over these batches; one forward pass.

    A network without BatchNorm is left as it is. Raises ValueError when there are no batches.
    """
    norms = [
        module
        for name, module in model.named_modules()
        if isinstance(module, NORMS) and module.track_running_stats and chosen(name)
    ]
    momenta = [norm.momentum for norm in norms]
    with eval_mode(model), torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the cumulative average: every batch counts the same
            norm.train()
        try:
            seen = 0
            for batch in checked(batches, "calibration"):
                call(model, batch)
                seen += 1
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    if not seen:
        raise ValueError("calibration has no batches; give at least one")
    return model
