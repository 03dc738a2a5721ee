"""Attention that gets a bias per head from outside: with fewer heads it picks the biases of those that are left.

BLOOM, MPT and Falcon make the biases of positions once, for the heads of all layers.
"""

import inspect
from collections.abc import Collection
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

BIASES = ("alibi", "position_bias")  # arguments that hold a bias for every head
MASK = "attention_mask"  # which may hold them as well, as in Falcon


class _SomeHeads(nn.Module):
    """Picks the biases of some heads before the forward pass of the class that it is mixed into."""

    biased: int  # number of heads for which biases come
    left: tuple[int, ...]  # numbers of the heads that this module has

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        whole = {name: value for name in (*BIASES, MASK) if isinstance(value := kwargs.get(name), Tensor)}
        if MASK in whole and (whole[MASK].ndim != 4 or self.biased == 1):
            del whole[MASK]
        picked = {name: _picked(value, self.biased, self.left) for name, value in whole.items()}
        output = super().forward(*args, **kwargs | picked)
        if not isinstance(output, tuple):
            return output
        handed_on = {id(value): whole[name] for name, value in picked.items()}  # later layers have their own heads
        return tuple(handed_on.get(id(value), value) for value in output)


def pick_biases(module: nn.Module, heads: int, gone: Collection[int]) -> None:
    """Let a module that has lost heads pick the biases of the others, in place, if it gets any from outside.

    Args:
        module: an attention module.
        heads: how many it had.
        gone: numbers of those that it has lost.
    """
    names = inspect.signature(type(module).forward).parameters
    some = isinstance(module, _SomeHeads)
    if not some and not any(name in names for name in BIASES):
        return
    before = module.left if some else tuple(range(heads))
    left = tuple(head for number, head in enumerate(before) if number not in gone)
    if not some:
        module.biased = heads  # type: ignore[assignment]
        module.__class__ = _with_some_heads(type(module))
    module.left = left  # type: ignore[assignment]


@cache
def _with_some_heads(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (_SomeHeads, kind), {"__module__": kind.__module__})


def _picked(bias: Tensor, heads: int, left: Collection[int]) -> Tensor:
    """The entries of some heads: along the first dimension, with or without that of the inputs, or the second."""
    index = torch.tensor([*left], device=bias.device)
    if bias.ndim == 4 and bias.shape[1] == heads:
        return bias.index_select(1, index)
    if bias.ndim == 3 and bias.shape[0] % heads == 0:
        return bias.unflatten(0, (-1, heads)).index_select(1, index).flatten(0, 1)
    return bias
