"""Half precision: proofs, statistics and solves are made in float32, whatever a model holds."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from simprune.core.copies import sharing

HALF = (torch.bfloat16, torch.float16)
COMPARE_TYPES = ("conv", "lstm", "gru", "rnn", "scaled_dot_product")  # how the names of functions begin


def in_half(model: nn.Module) -> bool:
    """Whether a model holds a parameter in half precision."""
    return any(parameter.dtype in HALF for parameter in model.parameters())


def in_single(model: nn.Module) -> nn.Module:
    """A copy of a model that holds float32 where the model holds half precision.

    >>> in_single(nn.Linear(2, 2, dtype=torch.bfloat16)).weight.dtype
    torch.float32
    """
    return to_single(sharing(model))


def to_single(model: nn.Module) -> nn.Module:
    """The model itself, with float32 in place of half precision; tied parameters stay tied."""
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.dtype in HALF:
            tensor.data = tensor.data.float()
    return model


class InSingle(TorchDispatchMode):
    """Within the block, every operation on half precision is done in float32, and gives float32.

    A weight is widened for the operation that reads it and for no longer, so a whole model runs in float32 without a
    copy in float32. Not for operations that write into half precision, and not with gradients.

    >>> with torch.no_grad(), InSingle():
    ...     nn.Linear(2, 2, dtype=torch.bfloat16)(torch.ones(1, 2)).dtype
    torch.float32
    """

    def __enter__(self) -> "InSingle":
        self._before = _WidenFirst()
        self._before.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._before.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return func(*tree_map(_widen, args), **tree_map(_widen, kwargs or {}))


class _WidenFirst(TorchFunctionMode):
    """Within the block, functions that compare the types of their arguments before they are dispatched get float32.

    Code that asks for the type of a tensor of half precision is told float32.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        compares = getattr(func, "__name__", "").startswith(COMPARE_TYPES)
        widen = partial(tree_map, _widen) if compares else lambda value: value
        result = func(*widen(args), **widen(kwargs or {}))
        return _widen(result) if isinstance(result, torch.dtype) else result


def _widen(value: Any) -> Any:
    """A tensor or a type of half precision in float32; anything else as it is."""
    if isinstance(value, torch.dtype):
        return torch.float32 if value in HALF else value
    return value.float() if isinstance(value, Tensor) and value.dtype in HALF else value


def widened(value: Any) -> Any:
    """Arguments with their tensors of half precision in float32; containers are copied.

    >>> widened((torch.ones(1, dtype=torch.float16), {"mask": None}))
    (tensor([1.]), {'mask': None})
    """
    if isinstance(value, Tensor):
        return value.float() if value.dtype in HALF else value
    if isinstance(value, Mapping) and type(value) is dict:
        return {key: widened(item) for key, item in value.items()}
    if type(value) in (tuple, list):
        items = [widened(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return value


def tolerance(single: float, *values: Tensor) -> float:
    """A relative tolerance: `single` in float32, and twice the spacing of numbers in the coarsest type of the values.

    >>> tolerance(1e-4, torch.ones(1)), tolerance(1e-4, torch.ones(1, dtype=torch.bfloat16))
    (0.0001, 0.015625)
    """
    return max(single, *(2 * torch.finfo(value.dtype).eps for value in values if value.is_floating_point()))


def require_finite(value: Tensor, what: str) -> None:
    """Stop where a tensor holds something that is no number.

    Args:
        value: the tensor.
        what: what it is, such as "the output of layer.1"; the error begins with it.

    Raises:
        ValueError: when an entry is infinite or not a number.
    """
    if not _is_finite(value):
        kind = "nan" if bool(value.isnan().any()) else "infinite entries"
        raise ValueError(f"{what} has {kind}; run the model in float32 or bfloat16, and look at its weights and inputs")


def _is_finite(value: Tensor) -> bool:
    """Whether all entries are finite numbers, which they are where their sum is one; it needs no memory."""
    wide = torch.float32 if value.dtype in HALF else None
    return bool(value.sum(dtype=wide).isfinite()) or bool(torch.isfinite(value).all())
