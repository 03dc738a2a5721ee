"""Normalisations over fewer channels: their scale makes up for the mean square, which other channels have made."""

import torch
from torch import Tensor, nn

from simprune.core.registry import register
from simprune.repair._task import Task
from simprune.repair.refit import Refit
from simprune.trace.capture import run
from simprune.trace.flow import normalisations
from simprune.trace.sites import Site


@register("repair", "norms", title="norms rescaled", order=0)
def norms(task: Task) -> list[Refit]:
    """The scale of every normalisation that has lost channels is multiplied so that its output keeps its size.

    A normalisation divides by the root of the mean square, or the variance, of the channels. Over fewer channels that
    is another number. One factor per normalisation brings its output nearest to the original's: in expectation the
    root of the ratio of both mean squares. One forward pass of the original; nothing is fitted but these factors.
    """
    rescale_norms(task)
    return []


@torch.no_grad()
def rescale_norms(task: Task) -> dict[str, float]:
    """Rescale the normalisations that have lost channels, in place.

    Args:
        task: what is repaired.

    Returns:
        The factor of every normalisation, by name.
    """
    network, effects = task.network, task.effects
    named = {module: name for name, module in network.model.named_modules()}
    over_tokens = (m for m in normalisations(network.model) if isinstance(m, nn.LayerNorm) or _is_of_tokens(m))
    narrowed = [
        name
        for name in (named[module] for module in over_tokens)
        if (f"{name}.weight", 0) in effects.removed and not effects.inside_dropped(name) and task.layers(name)
    ]
    if not narrowed:
        return {}
    sums = {name: torch.zeros(2, dtype=torch.float64) for name in narrowed}  # of new x old, and of new x new
    entered: dict[str, Tensor] = {}

    def see(site: Site, value: Tensor) -> None:
        rows = site.rows(value)
        if site.side == "input":
            entered[site.module] = rows
            return
        small = task.small.get_submodule(site.module)
        remaining = torch.tensor(effects.remaining(f"{site.module}.weight", 0, rows.shape[1]), device=rows.device)
        offset = getattr(small, "bias", None)
        offset = torch.zeros(len(remaining)) if offset is None else offset
        new = (small(entered.pop(site.module)[:, remaining]) - offset.to(rows)).double()
        old = (rows[:, remaining] - offset.to(rows)).double()
        sums[site.module] += torch.stack([(new * old).sum(), new.square().sum()]).cpu()

    sites = [Site(name, "positions", side) for name in narrowed for side in ("input", "output")]
    run(network.model, task.batches, sites, see, network.axes)
    factors = {name: float(both / own) for name, (both, own) in sums.items() if own > 0}
    for name, factor in factors.items():
        weight = task.small.get_submodule(name).get_parameter("weight")
        shift = _shift(task.small.get_submodule(name))
        weight.copy_(factor * (weight + shift) - shift)
    return factors


def _is_of_tokens(module: nn.Module) -> bool:
    """Whether it normalises the channels of one token at a time, by the name of its class."""
    return any(word in type(module).__name__.lower() for word in ("layernorm", "rmsnorm"))


def _shift(module: nn.Module) -> float:
    """What a normalisation adds to its weight before it multiplies with it: 1 in Gemma, 0 elsewhere."""
    weight = module.get_parameter("weight")
    before = weight.detach().clone()
    x = torch.linspace(-1, 1, len(weight), device=weight.device, dtype=weight.dtype)[None]
    outputs = []
    for value in (0.0, 1.0):
        weight.fill_(value)
        outputs.append(module(x).double())
    weight.copy_(before)
    per_weight = outputs[1] - outputs[0]
    bias = getattr(module, "bias", None)
    alone = outputs[0] if bias is None else outputs[0] - bias.double()
    largest = int(per_weight.abs().argmax())
    return round(float(alone.flatten()[largest] / per_weight.flatten()[largest]))
