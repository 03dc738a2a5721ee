"""BatchNorm: its statistics are estimated again, from what it gets in the pruned network."""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from simprune.core.batches import call
from simprune.core.peekable import Peekable
from simprune.core.registry import register
from simprune.repair._task import Task
from simprune.repair.refit import Refit
from simprune.trace.context import eval_mode
from simprune.trace.first_run import check_module, check_runs
from simprune.trace.later_runs import names_failing_batches


@register("repair", "bn", title="BatchNorm re-estimated", order=2)
def batchnorm(task: Task) -> list[Refit]:
    """The running mean and variance of every BatchNorm become the average over the calibration batches."""
    reestimate_batchnorm(task.small, task.batches, task.chosen)
    return []


@names_failing_batches
def reestimate_batchnorm(
    model: nn.Module, batches: Iterable, chosen: Callable[[str], bool] = lambda _: True
) -> nn.Module:
    """Set the running mean and variance of BatchNorms to the average over batches; one forward pass, no labels.

    Args:
        model: changed in place; a network without BatchNorm is left as it is.
        batches: calibration inputs.
        chosen: whether a BatchNorm takes part, by name.

    Returns:
        The model.

    Raises:
        ValueError: when there are no batches, or the model does not run on them.

    >>> model = reestimate_batchnorm(nn.BatchNorm1d(2), [torch.ones(4, 2), torch.zeros(4, 2)])
    >>> model.running_mean
    tensor([0.5000, 0.5000])
    """
    check_module(model)
    batches = Peekable.of(batches, "calibration")
    check_runs(model, batches.first, "calibration")
    named = [(name, norm) for name, norm in model.named_modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for name, norm in named if norm.track_running_stats and chosen(name)]
    momenta = [norm.momentum for norm in norms]
    with eval_mode(model), torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the cumulative average: every batch counts the same
            norm.train()
        try:
            for batch in batches:
                call(model, batch)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    return model
