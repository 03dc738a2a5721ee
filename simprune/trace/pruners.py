"""Rules for torch-pruning: how to cut modules that it does not know or cuts wrongly, and which to treat as one step."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch_pruning.pruner.function import BasePruningFunc, GroupNormPruner

from simprune.core.batches import first_tensor
from simprune.trace.attention import Attention, attentions, is_conv1d
from simprune.trace.cut import cut
from simprune.trace.explicit import ExplicitAttention, make_explicit


class AttentionPruner(BasePruningFunc):
    """Attention as one operation: inputs are columns of its projections, outputs rows of the output projection."""

    def __init__(self, model: nn.Module, layouts: dict[nn.Module, Attention]) -> None:
        super().__init__()
        self.model, self.layouts = model, layouts

    def _cut(self, module: nn.Module, tensors: Sequence[tuple[str, int]], indices: Sequence[int]) -> nn.Module:
        for tensor, dim in tensors:
            cut(self.model, tensor, dim, indices)
        if isinstance(module, nn.MultiheadAttention):
            make_explicit(module)
        return module

    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        return self._cut(layer, self.layouts[layer].writes, idxs)

    def prune_in_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        return self._cut(layer, self.layouts[layer].reads, idxs)

    def get_out_channels(self, layer: nn.Module) -> int | None:
        return self._size(self.layouts[layer].writes)

    def get_in_channels(self, layer: nn.Module) -> int | None:
        return self._size(self.layouts[layer].reads)

    def _size(self, tensors: Sequence[tuple[str, int]]) -> int | None:
        return next((self.model.get_parameter(tensor).shape[dim] for tensor, dim in tensors), None)


class Conv1DPruner(BasePruningFunc):
    """transformers' Conv1D: a linear layer with its weight as (inputs, outputs)."""

    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        cut(layer, "weight", 1, idxs)
        cut(layer, "bias", 0, idxs)
        return layer

    def prune_in_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        cut(layer, "weight", 0, idxs)
        return layer

    def get_out_channels(self, layer: nn.Module) -> int:
        return layer.get_parameter("weight").shape[1]

    def get_in_channels(self, layer: nn.Module) -> int:
        return layer.get_parameter("weight").shape[0]


class RMSNormPruner(BasePruningFunc):
    """nn.RMSNorm over the last dimension: `normalized_shape` follows its weight."""

    def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> nn.Module:
        if layer.elementwise_affine:
            cut(layer, "weight", len(layer.normalized_shape) - 1, idxs)
        layer.normalized_shape = (*layer.normalized_shape[:-1], layer.normalized_shape[-1] - len(idxs))
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: Any) -> int:
        return layer.normalized_shape[-1]

    get_in_channels = get_out_channels


class GroupwisePruner(GroupNormPruner):
    """nn.GroupNorm; where every group has a single channel, removing a channel removes its group."""

    def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> nn.Module:
        alone = layer.num_groups == layer.num_channels
        super().prune_out_channels(layer, list(idxs))
        layer.num_groups = layer.num_channels if alone else layer.num_groups
        return layer

    prune_in_channels = prune_out_channels


def pruners(model: nn.Module) -> tuple[dict[type, BasePruningFunc], dict[nn.Module, Attention]]:
    """Pruners for the modules of a model.

    torch-pruning looks pruners up by exact type. Attention modules of a type therefore get one only if the layout is
    known for all modules of that type.

    Returns:
        Type -> pruner; the attention modules that have one, with their layouts.
    """
    by_type: dict[type, BasePruningFunc] = {}
    for module in model.modules():
        if is_conv1d(module):
            by_type[type(module)] = Conv1DPruner()
        elif isinstance(module, nn.RMSNorm):
            by_type[type(module)] = RMSNormPruner()
        elif isinstance(module, nn.GroupNorm):
            by_type[type(module)] = GroupwisePruner()
    layouts = {model.get_submodule(name): layout for name, layout in attentions(model).items()}
    unknown = {type(module) for module in model.modules() if module not in layouts}
    attention = {module: layout for module, layout in layouts.items() if type(module) not in unknown}
    types = {type(module) for module in attention}
    if types & {nn.MultiheadAttention, ExplicitAttention}:  # a module changes its class within `explicit_attention`
        types |= {nn.MultiheadAttention, ExplicitAttention}
    by_type.update(dict.fromkeys(types, AttentionPruner(model, attention)))
    return by_type, attention


class _Whole(torch.autograd.Function):
    """The one operation, from all inputs to the output, that the trace sees in place of an opaque module's own."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, *inputs: Tensor) -> Tensor:
        return output.clone()


@contextmanager
def opaque(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within the block, torch-pruning's trace sees each of the modules as a single operation."""
    own = [(module, vars(module).get("forward")) for module in modules]
    for module in modules:
        module.forward = _as_one(module.forward)
    try:
        yield
    finally:
        for module, forward in own:
            del module.forward
            if forward is not None:
                module.forward = forward


def _as_one(forward: Callable[..., Any]) -> Callable[..., Any]:
    def whole(*args: Any, **kwargs: Any) -> Any:
        inputs = {id(x): x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.requires_grad}
        with torch.no_grad():
            output = forward(*args, **kwargs)
        first = _Whole.apply(first_tensor(output), *inputs.values())
        return (first, *output[1:]) if isinstance(output, tuple) else first

    return whole
