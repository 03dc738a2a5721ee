"""Layers that compute their weight before every pass: parametrizations, masks, and weight_norm of the old style."""

from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def parametrizations(model: nn.Module) -> set[nn.Module]:
    """The modules that compute weights, such as those of weight_norm, with all their parts."""
    lists = [module for module in model.modules() if isinstance(module, ParametrizationList)]
    return {part for module in lists for part in module.modules()}


def make_plain(model: nn.Module) -> None:
    """Replace weights that are computed before every pass by what they are now, in place.

    >>> layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    >>> make_plain(layer)
    >>> [name for name, _ in layer.named_parameters()]
    ['bias', 'weight']
    """
    for module in [module for module in model.modules() if is_parametrized(module)]:
        # not by torch's own function: it changes the class, which a copy shares with its original
        values = {tensor: getattr(module, tensor).detach() for tensor in module.parametrizations}  # type: ignore[union-attr]
        del module.parametrizations
        module.__class__ = type(module).__bases__[0]
        for tensor, value in values.items():
            module.register_parameter(tensor, nn.Parameter(value))
    for module in model.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if isinstance(hook, prune.BasePruningMethod | WeightNorm | SpectralNorm):
                hook.remove(module)
                del module._forward_pre_hooks[key]


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
