"""How an error inside the network moves its output: gradients of the output in random directions.

With z the output, r a vector of random signs and g the gradient of r.z at an activation y, E[g g^T] = E[J^T J] for the
Jacobian J of z at y. So tr(E[g g^T] E[d d^T]), summed over positions, estimates E|dz|^2 for a small error d at y whose
entries at different positions are not correlated.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from simprune.core.batches import call, checked, first_tensor
from simprune.core.moments import Moments
from simprune.trace.caches import forgetting
from simprune.trace.context import eval_mode, requiring
from simprune.trace.hooks import After, hooks

Watch = Callable[[nn.Module, Tensor, Tensor], None]  # (module, its input, its output that carries gradients)


def backpropagate(
    model: nn.Module,
    calibration: Iterable,
    watches: Mapping[str, Watch],
    seed: int = 0,
    close: Callable[[], object] = lambda: None,
) -> tuple[float, int]:
    """Show every watched module's input and output, then send the output's random directions back through all of them.

    A watch sees the gradient by `output.register_hook`; `close` is called after every batch. Returns the output's
    variance, summed over its entries, and the number of output rows. One forward and one backward pass; parameters,
    their gradients and `requires_grad`, and the training mode are as before.
    """
    generator = torch.Generator().manual_seed(seed)
    outputs: Moments | None = None
    # the gradient has to reach a parameter of each module, so it passes through the module's output
    targets = [next(model.get_submodule(name).parameters()) for name in watches]
    with eval_mode(model), torch.enable_grad(), hooks(after=_hooks(model, watches)), requiring(model, *targets):
        for batch in checked(calibration, "calibration"):
            with forgetting(model):  # what it keeps of one batch has no gradients in the next
                rows = call(model, batch).flatten(0, -2)
            direction = (2 * torch.randint(2, rows.shape, generator=generator) - 1).to(rows)
            torch.autograd.grad((rows * direction).sum(), targets, allow_unused=True)
            close()
            found = Moments.of(rows.detach())
            outputs = found if outputs is None else outputs.merge(found)
    if outputs is None:
        raise ValueError("calibration has no batches; give at least one")
    return float(outputs.covariance.diagonal().sum()), outputs.count


def _hooks(model: nn.Module, watches: Mapping[str, Watch]) -> list[tuple[nn.Module, After]]:
    def hook(watch: Watch):
        def see(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
            given, made = first_tensor((*args, *kwargs.values())), first_tensor(output)
            if given is not None and made is not None:
                watch(module, given.detach(), made)

        return see

    return [(model.get_submodule(name), hook(watch)) for name, watch in watches.items()]
