"""Blockwise: least squares, and then the layers of every residual block together."""

from simprune.core.registry import register
from simprune.repair._task import Task
from simprune.repair.least_squares import refit
from simprune.repair.refit import VALUES, Refit
from simprune.repair.ridge import Ridge


@register("repair", "blockwise", title="reconstructed", order=1, includes=("least_squares",))
def blockwise(task: Task, *, ridge: Ridge = "auto", values: int = VALUES) -> list[Refit]:
    """After least squares, the layers of every residual block are fitted together, so that all its units change.

    No labels and no learning rate, but iterated (see `simprune.repair.gauss_newton`): about five times the time of
    least squares.

    Args:
        task: what is repaired.
        ridge: as of least squares.
        values: entries of a block's output that it is fitted to, which bounds time and memory.
    """
    return refit(task, ridge, task.chosen, values)
