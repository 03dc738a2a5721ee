"""Least squares: layer after layer is solved for the output of the original's layer."""

from collections.abc import Callable

from simprune.core.heap import give_back
from simprune.core.registry import register
from simprune.repair._task import Task
from simprune.repair.in_order import refit_in_order
from simprune.repair.mirror import with_mirrored
from simprune.repair.nearer import with_segments_if_nearer
from simprune.repair.prepare import prepare
from simprune.repair.refit import VALUES, Refit
from simprune.repair.ridge import Ridge


@register("repair", "least_squares", title="reconstructed", order=1)
def least_squares(task: Task, *, ridge: Ridge = "auto", mirror: int | None = None) -> list[Refit]:
    """Every convolution and linear layer behind the first edit is solved for the original's output.

    Its inputs are those that it gets in the pruned network, so errors of earlier layers are corrected and not passed
    on; the last layer of a residual block also takes back what the shortcut has lost. A convolution without bias puts
    its intercept into the BatchNorm behind it; a layer with neither is fitted through the origin, and so is one whose
    BatchNorm reads other layers too. A layer that runs more than once is fitted to all its calls together. Grouped
    convolutions, subclasses that compute something else than a product with their weight, and layers whose weight is
    used elsewhere in another way (an embedding) stay as they are.

    Cost: one forward pass of both networks over the calibration batches, and two for every layer that runs more than
    once, plus one solve per layer, of as many unknowns as it has inputs x kernel, or rows where these are fewer.

    Args:
        task: what is repaired.
        ridge: on the change of the weights, relative to the mean variance of the inputs; "auto" takes for every layer
            the one with which a quarter of the inputs, held out, is predicted best, and leaves a layer as it is where
            none predicts them better than its present weights. Layers that add to the stream of a language model take
            the ridge of the last one before them that stands before removed blocks, or has lost inputs.
        mirror: dimension of the inputs along which they are mirrored, which gives twice as many, such as 3 for images
            (N, C, H, W); takes twice the time.
    """
    return refit(with_mirrored(task, mirror), ridge)


def refit(
    task: Task, ridge: Ridge = "auto", together: Callable[[str], bool] = lambda _: False, values: int = VALUES
) -> list[Refit]:
    """Refit layers in order of execution; and those of every segment for which `together` holds as a whole.

    Args:
        task: what is repaired.
        ridge: of the fits of layers.
        together: whether a block, by name, or a layer of a chain takes part in fits of whole segments.
        values: a segment is fitted to as many inputs as give so many entries of its output, or of a layer in it.

    Returns:
        The errors of layers and segments before and after.
    """
    give_back()
    network = task.network
    repair, layers = prepare(task, ridge, together, values)
    network.forget()
    if repair.together:
        return with_segments_if_nearer(repair, layers, network, task.batches)
    return refit_in_order(repair, layers, task.batches, "reconstruct")
