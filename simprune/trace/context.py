"""Running a network and leaving it as it was: evaluation mode, frozen parameters, no caches."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from simprune.trace.caches import forgetting
from simprune.trace.explicit import explicit_attention


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
    modes = [(module, module.training) for model in models for module in model.modules()]
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    for model in models:
        model.eval()
    try:
        with explicit_attention(*models), forgetting(*models):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, training in modes:
            module.training = training


@contextmanager
def requiring(model: nn.Module, *targets: nn.Parameter) -> Iterator[None]:
    """Within the block `targets` require gradients, and no other parameter of the model does."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    for parameter in targets:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextmanager
def uncached(model: nn.Module) -> Iterator[None]:
    """Within the block no key-value cache is used: with a cache, a layer's second run gives another result."""
    configs = {id(config): config for module in model.modules() if (config := getattr(module, "config", None))}
    cached = [config for config in configs.values() if getattr(config, "use_cache", None) is True]
    try:
        for config in cached:
            config.use_cache = False
        yield
    finally:
        for config in cached:
            config.use_cache = True
