"""How much an error inside the network changes its output, by gradients of the output in random directions.

Let z be the output, r a vector of random signs, and g the gradient of r.z at an activation y. Then E[g g^T] = E[J^T J]
for the Jacobian J of z at y. So tr(E[g g^T] E[d d^T]), summed over positions, estimates E|dz|^2 for a small error d at
y, if the errors at different positions are not correlated.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from simprune.core.batches import call, checked, first_tensor
from simprune.core.moments import Moments
from simprune.trace.caches import forgetting
from simprune.trace.context import eval_mode, requiring
from simprune.trace.hooks import hooks

Watch = Callable[[nn.Module, Tensor, Tensor], None]  # (module, its input, its output that carries gradients)


def backpropagate(
    model: nn.Module,
    calibration: Iterable,
    watches: Mapping[str, Watch],
    seed: int = 0,
    close: Callable[[], object] = lambda: None,
) -> tuple[float, int]:
    """Propagate random directions of the output back through watched modules: one forward and one backward pass.

    Parameters, their gradients and `requires_grad`, and the training mode are afterwards as before.

    Args:
        model: the network.
        calibration: batches.
        watches: module -> a function of (module, its input, its output), called in the forward pass. It sees the
            gradient if it registers a hook on the output.
        seed: of the directions.
        close: called after the backward pass of every batch.

    Returns:
        The variance of the output, summed over its entries, and the number of output rows.

    Raises:
        ValueError: when there are no batches.
    """
    generator = torch.Generator().manual_seed(seed)
    outputs: Moments | None = None
    # autograd computes only what leads to a target: with a parameter of every module, all outputs get their gradients
    targets = [next(model.get_submodule(name).parameters()) for name in watches]
    watched = [(model.get_submodule(name), partial(_see, watch)) for name, watch in watches.items()]
    with eval_mode(model), torch.enable_grad(), hooks(after=watched), requiring(model, *targets):
        for batch in checked(calibration, "calibration"):
            with forgetting(model):  # a tensor that the model stores would join the graphs of two batches
                rows = call(model, batch).flatten(0, -2)
            direction = (2 * torch.randint(2, rows.shape, generator=generator) - 1).to(rows)
            torch.autograd.grad((rows * direction).sum(), targets, allow_unused=True)
            close()
            batch_moments = Moments.of(rows.detach())
            outputs = batch_moments if outputs is None else outputs.merge(batch_moments)
    if outputs is None:
        raise ValueError("calibration has no batches; give at least one")
    return float(outputs.covariance.diagonal().sum()), outputs.count


def _see(watch: Watch, module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
    value, result = first_tensor((args, kwargs)), first_tensor(output)
    if value is not None and result is not None:
        watch(module, value.detach(), result)
