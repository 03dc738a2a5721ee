"""Blockwise: least squares, and then the layers of every block or segment together."""

from simprune.core.registry import register
from simprune.repair._task import Task
from simprune.repair.least_squares import refit
from simprune.repair.mirror import with_mirrored
from simprune.repair.refit import VALUES, Refit
from simprune.repair.ridge import Ridge


@register("repair", "blockwise", title="reconstructed", order=1, includes=("least_squares",))
def blockwise(task: Task, *, ridge: Ridge = "auto", values: int = VALUES, mirror: int | None = None) -> list[Refit]:
    """After least squares, the layers of every block or segment are fitted together, so that all its units change.

    Segments are residual blocks, other modules of a few layers, and every few layers of a chain (see
    `simprune.repair.segments`); depthwise convolutions in them take part. No labels and no learning rate, but iterated
    (see `simprune.repair.gauss_newton`): about ten times the time of least squares. Least squares alone stays where it
    leaves the outputs of the network nearer, on inputs that no segment was fitted to.

    Args:
        task: what is repaired.
        ridge: as of least squares.
        values: entries, of its output or of a layer in it, to which a segment is fitted: bounds time and memory.
        mirror: as of least squares.
    """
    return refit(with_mirrored(task, mirror), ridge, task.chosen, values)
