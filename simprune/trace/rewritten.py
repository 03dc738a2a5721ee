"""Layers that compute their weight before every pass: parametrizations, masks, and weight_norm of the old style."""

from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def rewritten(module: nn.Module, name: str) -> str | None:
    """Why entries of a layer's weight cannot be removed, and which call changes that; None for a plain weight.

    A norm of the whole weight changes with every entry that goes, and so would all others.

    Args:
        module: the layer.
        name: of it.

    >>> rewritten(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), "fc")
    "fc computes its weight (weight_norm): call torch.nn.utils.parametrize.remove_parametrizations(fc, 'weight') first"
    """
    if is_parametrized(module):
        tensor, rules = next(iter(module.parametrizations.items()))  # type: ignore[union-attr, operator]
        kinds = [type(rule).__name__.removeprefix("_") for rule in rules]
        known = {"WeightNorm": "weight_norm", "SpectralNorm": "spectral_norm", "Orthogonal": "orthogonal"}
        kind = ", ".join(known.get(kind, kind) for kind in kinds)
        return _first(name, tensor, kind, f"parametrize.remove_parametrizations({name}, {tensor!r})")
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, prune.BasePruningMethod):
            tensor = hook._tensor_name
            return _first(name, tensor, "a mask of torch.nn.utils.prune", f"prune.remove({name}, {tensor!r})")
        if isinstance(hook, WeightNorm):
            return _first(name, hook.name, "weight_norm", f"remove_weight_norm({name}, {hook.name!r})")
        if isinstance(hook, SpectralNorm):
            return _first(name, hook.name, "spectral_norm", f"remove_spectral_norm({name}, {hook.name!r})")
    return None


def _first(name: str, tensor: str, kind: str, call: str) -> str:
    return f"{name} computes its {tensor} ({kind}): call torch.nn.utils.{call} first"
