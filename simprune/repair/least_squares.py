"""Least squares: layer after layer is solved for the output of the original's layer."""

from collections.abc import Callable

from simprune.core.registry import register
from simprune.repair._task import Task
from simprune.repair.refit import VALUES, Refit, Repair
from simprune.repair.ridge import Ridge
from simprune.trace.execution import execution
from simprune.trace.layers import output_dim
from simprune.trace.shortcuts import find_shortcuts


@register("repair", "least_squares", title="reconstructed", order=1)
def least_squares(task: Task, *, ridge: Ridge = "auto") -> list[Refit]:
    """Every convolution and linear layer behind the first edit is solved for the original's output.

    Its inputs are those that it gets in the pruned network, so errors of earlier layers are corrected and not passed
    on; the last layer of a residual block also takes back what the shortcut has lost. A convolution without bias puts
    its intercept into the BatchNorm behind it; a layer with neither is fitted through the origin. Grouped convolutions,
    layers that run more than once, and subclasses that compute something else than a product with their weight stay as
    they are.

    Cost: one forward pass of both networks over the calibration batches, plus one solve per layer, of as many unknowns
    as it has inputs x kernel, or rows where these are fewer.

    Args:
        task: what is repaired.
        ridge: relative to the mean variance of the inputs; "auto" takes for every layer the one with which an eighth of
            the inputs, held out, is predicted best.
    """
    return refit(task, ridge)


def refit(
    task: Task, ridge: Ridge = "auto", together: Callable[[str], bool] = lambda _: False, values: int = VALUES
) -> list[Refit]:
    """Refit layers in order of execution; at last those of every block for which `together` holds as a whole.

    Args:
        task: what is repaired.
        ridge: of the fits of layers.
        together: whether a block, by name, is fitted as a whole.
        values: a block is fitted to as many batches as give so many entries of its output.

    Returns:
        The errors of layers and blocks before and after.
    """
    network, effects = task.network, task.effects
    order, normalisers = execution(task.small, network.example)

    def touched(name: str) -> bool:
        """Whether the plan changes the layer's input, or removes the layer with a block."""
        inputs = 1 - output_dim(network.model.get_submodule(name))
        return effects.inside_dropped(name) or (f"{name}.weight", inputs) in effects.removed

    first = next((index for index, name in enumerate(network.order) if touched(name)), len(network.order))
    behind = set(network.order[first:])
    chosen = [name for name in order if task.layers(name)]
    layers = [name for name in chosen if name in behind]
    shortcuts = find_shortcuts(task.small, network.block_calls, layers)
    blocks = {
        shortcut.module: [name for name in chosen if name.startswith(f"{shortcut.module}.")]
        for shortcut in shortcuts.values()
        if together(shortcut.module)
    }
    repair = Repair(task.small, network.model, effects, normalisers, shortcuts, ridge, blocks, values)
    return repair.run(layers, task.batches, "reconstruct")
