"""Running a network and leaving it as it was: evaluation mode, frozen parameters, no caches."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from simprune.trace.caches import forgetting
from simprune.trace.explicit import ExplicitAttention


@contextmanager
def _restoring(objects: Iterable[Any], attribute: str) -> Iterator[None]:
    """After the block, also after an error, an attribute of all objects has the value from before the block."""
    values = [(item, getattr(item, attribute)) for item in objects]
    try:
        yield
    finally:
        for item, value in values:
            if getattr(item, attribute) is not value:  # setting an attribute of a module takes much longer
                setattr(item, attribute, value)


@contextmanager
def evaluation(*models: nn.Module) -> Iterator[None]:
    """Evaluation and inference mode within the block; afterwards, also after an error, all is as `eval_mode` says.

    >>> model = nn.Dropout()
    >>> with evaluation(model):
    ...     model.training, torch.is_inference_mode_enabled()
    (False, True)
    >>> model.training
    True
    """
    with eval_mode(*models), torch.inference_mode():
        yield


@contextmanager
def eval_mode(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block, with gradients as they are; every module's own mode comes back afterwards.

    Hooks and counters see every layer: torch's fused attention, which runs without its parts, is off, and
    nn.MultiheadAttention runs step by step (see `simprune.trace.explicit`). Tensors that modules store during the pass
    are removed (see `simprune.trace.caches`).
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with _restoring([module for model in models for module in model.modules()], "training"):
            for model in models:
                if any(module.training for module in model.modules()):
                    model.eval()
            with explicit_attention(*models), forgetting(*models):
                yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextmanager
def explicit_attention(*models: nn.Module) -> Iterator[None]:
    """Within the block, every nn.MultiheadAttention of the models is an `ExplicitAttention`.

    Left out are modules with `bias_k` or `add_zero_attn`, which `ExplicitAttention` does not compute.

    >>> attention = nn.MultiheadAttention(8, 2)
    >>> with explicit_attention(attention):
    ...     type(attention).__name__
    'ExplicitAttention'
    """
    modules = [m for model in models for m in model.modules() if type(m) is nn.MultiheadAttention]
    modules = [module for module in modules if module.bias_k is None and not module.add_zero_attn]
    with _restoring(modules, "__class__"):
        for module in modules:
            module.__class__ = ExplicitAttention
        yield


@contextmanager
def requiring(model: nn.Module, *targets: nn.Parameter) -> Iterator[None]:
    """Within the block `targets` require gradients, and no other parameter of the model does."""
    with _restoring(model.parameters(), "requires_grad"):
        model.requires_grad_(False)
        for parameter in targets:
            parameter.requires_grad_(True)
        yield


@contextmanager
def uncached(model: nn.Module) -> Iterator[None]:
    """Within the block no key-value cache is used: with a cache, a layer's second run gives another result."""
    configs = [config for module in model.modules() if (config := getattr(module, "config", None))]
    cached = [config for config in configs if getattr(config, "use_cache", None) is True]
    with _restoring(cached, "use_cache"):
        for config in cached:
            config.use_cache = False
        yield
