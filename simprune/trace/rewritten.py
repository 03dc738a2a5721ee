"""Layers that compute their weight before every pass: parametrizations, masks, and norms of the old style.

Weights under weight_norm and masks can lose entries: the other entries stay as they are (`without_rules`), and the rule
is put on what is left (`with_rules`). Norms of the whole weight, such as spectral_norm, change with every entry that
goes, and so would all others; they, and rules that nobody knows, are refused.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations as torch_rules
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from simprune.core.copies import copy_of


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
    for module in [*model.modules()]:
        _make_plain(module)


def _make_plain(module: nn.Module) -> None:
    if is_parametrized(module):
        # not by torch's own function: it changes the class, which a copy shares with its original
        values = {tensor: getattr(module, tensor).detach() for tensor in module.parametrizations}  # type: ignore[union-attr]
        del module.parametrizations
        module.__class__ = type(module).__bases__[0]
        for tensor, value in values.items():
            module.register_parameter(tensor, nn.Parameter(value))
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, prune.BasePruningMethod | WeightNorm | SpectralNorm):
            hook.remove(module)
            del module._forward_pre_hooks[key]


def without_rules(model: nn.Module) -> nn.Module:
    """The model itself, or a copy in which weights under weight_norm or a mask are plain, if it has any.

    >>> model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    >>> [name for name, _ in without_rules(model).named_parameters()]
    ['0.bias', '0.weight']
    """
    names = [name for name, module in model.named_modules() if _rules(module)]
    if not names:
        return model
    plain = copy_of(model)
    for name in names:
        _make_plain(plain.get_submodule(name))
    return plain


def with_rules(
    small: nn.Module, model: nn.Module, removed: Mapping[tuple[str, int], Sequence[int]], skip: Sequence[str] = ()
) -> None:
    """Put the rules of a model's weights on the plain weights of a smaller one, in place.

    Args:
        small: with the names of the model's modules.
        model: the original.
        removed: entries that the smaller one has lost, by tensor and dimension.
        skip: modules that are gone, with all that is in them.
    """
    for name, module in model.named_modules():
        rules = _rules(module)
        if not rules or any(f"{name}.".startswith(f"{gone}.") for gone in skip):
            continue
        layer = small.get_submodule(name)
        for tensor, rule in rules.items():
            gone = {dim: entries for (key, dim), entries in removed.items() if key == f"{name}.{tensor}"}
            if isinstance(rule, prune.BasePruningMethod):
                orig, mask = (_without(getattr(module, f"{tensor}_{part}"), gone) for part in ("orig", "mask"))
                prune.custom_from_mask(layer, tensor, mask.to(layer.get_parameter(tensor)))
                with torch.no_grad():
                    layer.get_parameter(f"{tensor}_orig").copy_(orig)
            else:
                _normalise(layer, tensor, rule)
                if not gone:
                    _copy_parts(layer, module, tensor)


@contextmanager
def plain_norms(model: nn.Module) -> Iterator[list[str]]:
    """Within the block, weights under weight_norm are plain and may be rewritten; yields the names of masked layers.

    >>> layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    >>> with plain_norms(layer):
    ...     _ = layer.weight.data.fill_(1)
    >>> layer.weight.detach()
    tensor([[1., 1.],
            [1., 1.]])
    """
    rules = {module: rules for module in model.modules() if (rules := _rules(module))}
    masked = {m for m, own in rules.items() if any(isinstance(rule, prune.BasePruningMethod) for rule in own.values())}
    before = {module: (copy_of(module), own) for module, own in rules.items() if module not in masked}
    for module in before:
        _make_plain(module)
    try:
        yield [name for name, module in model.named_modules() if module in masked]
    finally:
        for module, (copy, own) in before.items():
            for tensor, rule in own.items():
                same = torch.equal(getattr(copy, tensor), module.get_parameter(tensor))
                _normalise(module, tensor, rule)
                if same:
                    _copy_parts(module, copy, tensor)


def _rules(module: nn.Module) -> dict[str, Any]:
    """The rules of a layer's tensors, by tensor; none where one of them is neither weight_norm nor a mask."""
    if isinstance(module, ParametrizationList):
        return {}
    rules: dict[str, Any] = {}
    if is_parametrized(module):
        for tensor, chain in module.parametrizations.items():  # type: ignore[union-attr, operator]
            if len(chain) != 1 or not isinstance(chain[0], _WeightNorm):
                return {}
            rules[tensor] = chain[0]
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, prune.BasePruningMethod):
            rules[hook._tensor_name] = hook
        elif isinstance(hook, WeightNorm):
            rules[hook.name] = hook
        elif isinstance(hook, SpectralNorm):
            return {}
    return rules


def _normalise(layer: nn.Module, tensor: str, rule: Any) -> None:
    """Put weight_norm, of the style and dimension of a rule, on a plain weight."""
    dim: Any = None if rule.dim == -1 else rule.dim  # torch states no None, and takes it
    if isinstance(rule, _WeightNorm):
        torch_rules.weight_norm(layer, tensor, dim)
        return
    with warnings.catch_warnings():  # the style that the original has is deprecated
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(layer, tensor, dim)


def _copy_parts(layer: nn.Module, source: nn.Module, tensor: str) -> None:
    """Make the tensors that compute an unchanged weight exactly those of the source."""
    own, others = dict(layer.named_parameters()), dict(source.named_parameters())
    with torch.no_grad():
        for name in own:
            if name.startswith((f"parametrizations.{tensor}.", f"{tensor}_")) and name in others:
                own[name].copy_(others[name])


def _without(value: Tensor, gone: Mapping[int, Sequence[int]]) -> Tensor:
    """A tensor without some entries, by dimension."""
    for dim, entries in gone.items():
        left = [index for index in range(value.shape[dim]) if index not in {*entries}]
        value = value.index_select(dim, torch.tensor(left, device=value.device))
    return value.detach()


def rewritten(module: nn.Module, name: str) -> str | None:
    """Why entries of a layer's weight cannot be removed, and which call changes that; None for a plain weight.

    Args:
        module: the layer.
        name: of it.

    >>> rewritten(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)), "fc").split(": ")[0]
    'fc computes its weight (spectral_norm)'
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
