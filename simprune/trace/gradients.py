"""Features and gradients at named sites, from one forward and one backward pass of every batch."""

import copy
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from simprune.core.batches import call, checked, copied, device_of, first_tensor, inputs_of, move
from simprune.core.example import example_of
from simprune.core.labels import labels_of
from simprune.trace.axes import Axes, axes_of
from simprune.trace.caches import forgetting
from simprune.trace.context import eval_mode
from simprune.trace.sites import Site, hooks_at, require_rows

Loss = Callable[[Tensor, Tensor | None], Tensor]


class _Reading(NamedTuple):
    """The activation at a site, whose gradient is needed, and a copy of its rows: modules may change it in place."""

    site: Site
    activation: Tensor
    rows: Tensor


def soft_log_likelihood(logits: Tensor, labels: Tensor | None = None, power: float = 0.5) -> Tensor:
    """sum_c q_c log p_c of every input, (N,), for logits (N, C): p = softmax(logits), q ~ p^power held constant.

    Needs no labels, which are ignored. Source: Tang et al. 2020, arXiv:2003.11498.

    >>> soft_log_likelihood(torch.zeros(1, 4)).exp()
    tensor([0.2500])
    """
    log_p = logits.log_softmax(-1)
    return ((power * log_p.detach()).softmax(-1) * log_p).sum(-1)


def capture_gradients(
    model: nn.Module, batches: Iterable, sites: Iterable[Site], loss: Loss = soft_log_likelihood
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Features and gradients of every site.

    The model runs in evaluation mode; `.grad` and `requires_grad` of its parameters, its modes and hooks are afterwards
    as before, also after an error. Costs one forward pass and the backward pass to the first site.

    Args:
        model: the network.
        batches: inputs, with labels where the loss needs them.
        sites: where to read.
        loss: `loss(output, labels)` gives one number per input, (N,): a loss with reduction="none", or a chosen output.
            Labels are None where a batch has none.

    Returns:
        Two dicts, of features and of gradients: name of a site -> (N, D), on the CPU, in the order of the batches. Row
        i of the gradients is the derivative of input i's number by row i of the features; for pooled features, as if
        the same were added at all positions.

    Raises:
        KeyError: for a site whose module the model does not have.
        ValueError: for several sites of one name; for a site that does not run, has no floating-point activation or
            does not affect the loss; for a loss of another shape; for no batches; and for BatchNorm without running
            statistics, which mixes the inputs of a batch.

    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> features, gradients = capture_gradients(model, [torch.randn(5, 4)], [Site("0")], lambda z, _: z[:, 1])
    >>> gradients["0"].shape == features["0"].shape
    True
    """
    sites = list(sites)
    _require_separate(model, sites)
    features: dict[str, list[Tensor]] = {site.name: [] for site in sites}
    gradients: dict[str, list[Tensor]] = {site.name: [] for site in sites}
    readings: list[_Reading] = []
    axes: Axes | None = None
    with torch.inference_mode(False), torch.enable_grad(), eval_mode(model):
        for batch in checked(batches, "batches"):
            if axes is None:
                axes = axes_of(model, move(example_of(batch), device_of(model)))
                sites = [site.located(axes) for site in sites]
            readings.clear()
            # copies, because modules may write into inputs, and gradients must not reach the caller's tensors
            args, kwargs = copied(inputs_of(batch))
            with forgetting(model), hooks_at(model, sites, partial(_fork, readings)):
                output = call(model, kwargs or (args, None))
            labels = labels_of(batch)
            numbers = loss(output, None if labels is None else labels.to(output.device))
            if numbers.shape != output.shape[:1]:
                raise ValueError(
                    f"loss must give one number per input, shape ({len(output)},); got {tuple(numbers.shape)}: "
                    'use reduction="none", or choose one output'
                )
            for (site, _, activations), gradient in zip(readings, _gradients(numbers, readings), strict=True):
                features[site.name].append(activations)
                rows = site.rows(gradient)
                positions = gradient.numel() // rows.numel() if site.layout == "pool" else 1
                gradients[site.name].append(rows.mul(positions).to("cpu", copy=True))
    require_rows(sites, features)
    joined = [{name: torch.cat(rows) for name, rows in parts.items()} for parts in (features, gradients)]
    return joined[0], joined[1]


def _gradients(numbers: Tensor, readings: list[_Reading]) -> tuple[Tensor, ...]:
    """Gradients of the sum over the batch, which are those of every input's own number. No `.grad` is written."""
    activations = [reading.activation for reading in readings]
    gradients = [None] * len(readings)
    if readings and numbers.requires_grad:
        gradients = torch.autograd.grad(numbers.sum(), activations, allow_unused=True)
    unused = [reading.site.name for reading, gradient in zip(readings, gradients, strict=True) if gradient is None]
    if unused:
        raise ValueError(f"the loss does not depend on {', '.join(unused)}: choose sites before the output it uses")
    return tuple(gradient for gradient in gradients if gradient is not None)


def _require_separate(model: nn.Module, sites: list[Site]) -> None:
    names = [site.name for site in sites]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"expected sites of different names, got {', '.join(twice)} more than once: capture them apart"
        )
    norms = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    mixing = [name for name, norm in norms if norm.running_mean is None]
    if mixing:
        raise ValueError(
            f"{', '.join(mixing)}: BatchNorm without running statistics mixes the inputs of a batch, so no input has a "
            "gradient of its own; use track_running_stats=True"
        )


def _fork(readings: list[_Reading], site: Site, _: nn.Module, values: Any) -> Any:
    """Append the activation at a site to `readings`, and return a copy of it for the network.

    Autograd refuses the gradient of a tensor that was changed in place; later modules change the copy instead.
    """
    value = first_tensor(values)
    if value is None or not value.is_floating_point():
        raise ValueError(f"{site.name}: expected floating-point activations, got {getattr(value, 'dtype', None)}")
    activation = value if value.requires_grad else value.detach().requires_grad_()
    rows = site.rows(activation.detach()).to("cpu", copy=True)
    readings.append(_Reading(site, activation, rows))
    return _replaced(values, value, activation.clone())


def _replaced(value: Any, old: Tensor, new: Tensor) -> Any:
    """The same structure with `new` where `old` was."""
    if value is old:
        return new
    if isinstance(value, tuple | list):
        items = [_replaced(item, old, new) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, Mapping):
        result = copy.copy(value)
        for key, item in value.items():
            result[key] = _replaced(item, old, new)  # pyright: ignore[reportIndexIssue]
        return result
    return value
