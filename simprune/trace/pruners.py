"""Rules for torch-pruning: how to cut modules that it does not know or cuts wrongly, and which to treat as one step."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch_pruning.pruner.function import BasePruningFunc, GroupNormPruner, LayernormPruner

from simprune.core.batches import first_tensor
from simprune.trace.attention import Entry, along_outputs, attentions
from simprune.trace.cut import cut
from simprune.trace.explicit import ExplicitAttention, make_explicit
from simprune.trace.layers import is_conv1d

Sides = dict[str, tuple[Entry, ...]]  # "in" and "out": tensors, with dimensions, along which channels of that side lie


class SidesPruner(BasePruningFunc):
    """Modules that are cut as one operation, such as attention: a channel goes from all tensors of its side."""

    def __init__(self, model: nn.Module, sides: dict[nn.Module, Sides]) -> None:
        super().__init__()
        self.model, self.sides = model, sides

    def _cut(self, layer: nn.Module, side: str, indices: Sequence[int]) -> nn.Module:
        for tensor, dim in self.sides[layer][side]:
            cut(self.model, tensor, dim, indices)
        if isinstance(layer, nn.MultiheadAttention):
            make_explicit(layer)
        return layer

    def _size(self, layer: nn.Module, side: str) -> int | None:
        return next((self.model.get_parameter(tensor).shape[dim] for tensor, dim in self.sides[layer][side]), None)

    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        return self._cut(layer, "out", idxs)

    def prune_in_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        return self._cut(layer, "in", idxs)

    def get_out_channels(self, layer: nn.Module) -> int | None:
        return self._size(layer, "out")

    def get_in_channels(self, layer: nn.Module) -> int | None:
        return self._size(layer, "in")


class RMSNormPruner(LayernormPruner):
    """nn.RMSNorm over the last dimension: `normalized_shape` follows its weight."""

    def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> nn.Module:
        if layer.elementwise_affine:
            cut(layer, "weight", len(layer.normalized_shape) - 1, idxs)  # the shape follows
        else:
            layer.normalized_shape = (*layer.normalized_shape[:-1], layer.normalized_shape[-1] - len(idxs))
        return layer

    prune_in_channels = prune_out_channels


class GroupwisePruner(GroupNormPruner):
    """nn.GroupNorm; where every group has a single channel, removing a channel removes its group."""

    def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> nn.Module:
        alone = layer.num_groups == layer.num_channels
        super().prune_out_channels(layer, list(idxs))
        layer.num_groups = layer.num_channels if alone else layer.num_groups
        return layer

    prune_in_channels = prune_out_channels


class MultipliedPruner(BasePruningFunc):
    """Convolutions that make several outputs of every input alone: an input that loses all its outputs goes as well."""

    def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> nn.Module:
        rows = torch.arange(layer.out_channels).view(layer.in_channels, -1)
        remaining = ~torch.isin(rows, torch.tensor(idxs))
        for name in ("weight", "bias"):
            if getattr(layer, name) is not None:
                cut(layer, name, 0, idxs)
        layer.groups = layer.in_channels = int(remaining.any(1).sum())
        layer.out_channels = int(remaining.sum())
        return layer

    def prune_in_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        raise NotImplementedError("its inputs go with their outputs")

    def get_out_channels(self, layer: Any) -> int:
        return layer.out_channels

    def get_in_channels(self, layer: Any) -> int:
        return layer.in_channels


def pruners(model: nn.Module) -> tuple[dict[type, BasePruningFunc], dict[nn.Module, Sides], frozenset[str]]:
    """Pruners for the modules of a model.

    torch-pruning looks pruners up by exact type. Attention modules of a type therefore get one only if the layout is
    known for all modules of that type.

    Returns:
        Type -> pruner; the modules that are cut as one operation (attention, transformers' Conv1D); the names of the
        projections of attention modules.
    """
    known = {model.get_submodule(name): layout for name, layout in attentions(model).items()}
    unknown = {type(module) for module in model.modules() if module not in known}
    layouts = {module: layout for module, layout in known.items() if type(module) not in unknown}
    sides: dict[nn.Module, Sides] = {m: {"in": layout.reads, "out": layout.writes} for m, layout in layouts.items()}
    for name, module in model.named_modules():
        if is_conv1d(module):
            sides[module] = {"in": ((f"{name}.weight", 0),), "out": along_outputs(name, module)}
    types = {type(module) for module in sides}
    if types & {nn.MultiheadAttention, ExplicitAttention}:  # a module changes its class within `explicit_attention`
        types |= {nn.MultiheadAttention, ExplicitAttention}
    by_type: dict[type, BasePruningFunc] = dict.fromkeys(types, SidesPruner(model, sides))
    for module in model.modules():
        if isinstance(module, nn.RMSNorm):
            by_type[type(module)] = RMSNormPruner()
        elif isinstance(module, nn.GroupNorm):
            by_type[type(module)] = GroupwisePruner()
    return by_type, sides, frozenset().union(*(layout.layers for layout in layouts.values()))


class _Whole(torch.autograd.Function):
    """The one operation, from all inputs to the output, that the trace sees in place of an opaque module's own."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, *inputs: Tensor) -> Tensor:
        return output.clone()


@contextmanager
def opaque(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within the block, torch-pruning's trace sees every one of the modules as a single operation."""
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
