"""The layers in order of execution, and the BatchNorm that reads a layer's output."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from simprune.core.batches import first_tensor
from simprune.core.cost import Example
from simprune.trace.context import eval_mode
from simprune.trace.hooks import hooks
from simprune.trace.layers import can_be_fitted


def execution(model: nn.Module, example: Example) -> tuple[list[str], dict[str, str]]:
    """Convolutions and linear layers that run once, in order of execution, and the BatchNorms that read their outputs.

    Returns:
        Names of the layers; layer -> BatchNorm.

    >>> execution(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), ((torch.zeros(1, 3, 2, 2),), {}))
    (['0'], {'0': '1'})
    """
    order: list[str] = []
    producers: dict[int, str] = {}  # id of an output -> layer
    normalisers: dict[str, str] = {}
    alive: list[Tensor] = []  # outputs that still exist have ids that no other tensor gets

    def see(name: str, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if isinstance(module, _BatchNorm):
            layer = producers.get(id(first_tensor((args, kwargs))))
            if layer is not None:
                normalisers[layer] = name
        elif isinstance(output, Tensor):
            order.append(name)
            alive.append(output)
            producers[id(output)] = name

    watched = [(m, partial(see, n)) for n, m in model.named_modules() if can_be_fitted(m) or isinstance(m, _BatchNorm)]
    args, kwargs = example
    with eval_mode(model), torch.no_grad(), hooks(after=watched):
        model(*args, **kwargs)
    return [name for name in order if order.count(name) == 1], normalisers
