"""Which argument of a module a shortcut carries to its output."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from simprune.core.batches import copied, first_tensor
from simprune.core.copies import fill
from simprune.trace.axes import channel_axis
from simprune.trace.context import eval_mode, uncached
from simprune.trace.precision import tolerance
from simprune.trace.shortcuts import zero_copy
from simprune.trace.visits import Visit


def carried(module: nn.Module, visit: Visit) -> int | str | None:
    """Position or name of the argument that a shortcut carries through a composite module; None without a shortcut.

    Whether a shortcut runs through a module follows from what the module computes:

    - A residual or pre-norm block returns its input when all its parameters are zero.
    - A post-norm block, which normalises after the sum as in BERT, returns its input up to a shift and a positive scale
      at every position when all weights are zero but those of normalisations, which are one. This test is weaker.

    A module may get several tensors of its output's shape, such as the normalised stream beside the stream itself: the
    one that comes back is the stream.

    Args:
        module: any module; caches are off and it is in evaluation mode.
        visit: its arguments and its output.
    """
    y = visit.output
    if next(module.children(), None) is None or y is None or not y.is_floating_point() or y.ndim < 2:
        return None
    candidates = {key: x for key, x in visit.alike.items() if x.is_floating_point()}
    if not candidates or not any(parameter.ndim > 1 for parameter in module.parameters()):
        return None
    zero = zero_copy(module)
    output = _rerun(zero, visit)
    if output is None or output.shape != y.shape:
        return None
    for key, x in candidates.items():
        size, relative = float(x.abs().max()), tolerance(1e-5, x, output)
        if size > 0 and torch.allclose(output.to(x.dtype), x, rtol=relative, atol=1e-5 * size):
            return key
    for part in zero.modules():
        if "norm" in type(part).__name__.lower():
            for name, parameter in part.named_parameters(recurse=False):
                if name.endswith("weight"):
                    fill(parameter, 1)
    output = _rerun(zero, visit)
    if output is None:
        return None
    return next((key for key, x in candidates.items() if _same_up_to_scale(x, output, visit.axis)), None)


def settle(model: nn.Module, visits: Mapping[str, Visit]) -> None:
    """State the argument that is carried in every visit with several arguments of the output's shape, in place."""
    several = {name: visit for name, visit in visits.items() if len(visit.alike) > 1}
    if several:
        with eval_mode(model), uncached(model), torch.no_grad():
            for name, visit in several.items():
                visit.carried = carried(model.get_submodule(name), visit)


def _same_up_to_scale(x: Tensor, y: Tensor, axis: int | None) -> bool:
    """Whether y is x up to a shift and a positive scale at every position; channels lie along `axis`."""
    dim = channel_axis(x, axis)
    x, y = (value.double() - value.double().mean(dim, keepdim=True) for value in (x, y))
    cosine = torch.cosine_similarity(x, y, dim=dim)
    return bool(x.abs().max() > 0) and bool((cosine > 0.999).all())


def _rerun(module: nn.Module, visit: Visit) -> Tensor | None:
    """The first tensor that the module returns for the arguments of a visit; None when the module fails."""
    args, kwargs = copied(visit.call)
    try:
        return first_tensor(module(*args, **kwargs))
    except Exception:  # a foreign forward pass may raise anything; such a module is no candidate
        return None
