"""Training of low rank: adapters of peft beside linear layers, which are multiplied into their weights at the end."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def adapted(model: nn.Module, rank: int) -> Iterator[None]:
    """Within the block only adapters of a rank require gradients; at its end they are merged, and none is left.

    Every linear layer gets an adapter, but for those whose weights have another use, such as a head that is tied to
    the embedding.

    Args:
        model: changed in place.
        rank: of the adapters; 0: no adapters, everything stays as it is.

    Raises:
        ValueError: for a model without linear layers.
    """
    if not rank:
        yield
        return
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    users: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users[id(parameter)] = users.get(id(parameter), 0) + 1
    names = [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and users[id(module.weight)] == 1 and name
    ]
    if not names:
        raise ValueError("finetune.lora: expected linear layers with weights of their own; got none; leave lora out")
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in required:
        parameter.requires_grad_(False)
    try:
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names), model)
        yield
    finally:
        with torch.no_grad():
            for name, module in list(model.named_modules()):
                if isinstance(module, BaseTunerLayer):
                    module.merge()
                    model.set_submodule(name, module.get_base_layer())
        for parameter, value in required:
            parameter.requires_grad_(value)
