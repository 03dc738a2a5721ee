"""A small example input: cut from a batch, described in a plan, built again from the description."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from simprune.core.batches import inputs_of
from simprune.core.cost import Example
from simprune.core.options import shown

ELEMENTS = 1 << 27  # the most numbers in an example that is built from a description, half a GiB in float32
# types of which `from_description` makes tensors
BUILT = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip
ROWS = 2  # the smallest batch on which BatchNorm can run in training mode


def example_of(batch: Any) -> Example:
    """Arguments of the model cut to the first two rows of a batch (one row is doubled)."""
    return mapped(_cut, *inputs_of(batch))


def mapped(function: Callable[[Any], Any], args: Sequence, kwargs: Mapping[str, Any]) -> tuple[tuple, dict]:
    """Arguments with a function applied to every value.

    >>> mapped(abs, (-1,), {"scale": -2})
    ((1,), {'scale': 2})
    """
    return tuple(map(function, args)), {key: function(value) for key, value in kwargs.items()}


def _cut(value: Any) -> Any:
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    if len(value) == 0:
        raise ValueError("the first batch is empty; give at least one row")
    return value[:ROWS].clone() if len(value) >= ROWS else value.repeat(ROWS, *[1] * (value.ndim - 1))


def describe(example: Example) -> dict[str, Any]:
    """Shapes and types of an example, as a plan stores them.

    >>> describe(((torch.zeros(2, 3),), {}))
    {'args': [{'shape': [2, 3], 'dtype': 'float32'}], 'kwargs': {}}
    """
    args, kwargs = mapped(_describe, *example)
    return {"args": list(args), "kwargs": kwargs}


def _describe(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    return value if isinstance(value, bool | int | float | str | type(None)) else None


def check_description(description: Any, where: str) -> None:
    """Raise ValueError unless an example can be built from what a file describes.

    Args:
        description: as `describe` returns it, or anything else.
        where: what errors begin with.

    >>> check_description({"args": [{"shape": [2, -3], "dtype": "float32"}], "kwargs": {}}, "plan: inputs")
    Traceback (most recent call last):
    ValueError: plan: inputs: shape: expected a list of whole numbers from 0; got [2, -3]
    """
    named = description if isinstance(description, Mapping) else {}
    args, kwargs = named.get("args"), named.get("kwargs")
    if set(named) != {"args", "kwargs"} or not isinstance(args, list | tuple) or not isinstance(kwargs, dict):
        raise ValueError(f"{where}: expected a list args and a mapping kwargs; got {shown(description)}")
    if odd := [key for key in kwargs if not isinstance(key, str)]:
        raise ValueError(f"{where}: kwargs: expected names; got {shown(odd[0])}")
    elements = sum(_checked_size(value, where) for value in [*args, *kwargs.values()])
    if elements > ELEMENTS:
        raise ValueError(f"{where}: expected at most {ELEMENTS:,} numbers in an example; got {elements:,}")


def _checked_size(value: Any, where: str) -> int:
    """Numbers in a described value; ValueError for what describes none."""
    if isinstance(value, bool | int | float | str | type(None)):
        return 0
    if not isinstance(value, Mapping) or set(value) != {"shape", "dtype"}:
        raise ValueError(f"{where}: expected shape and dtype, or a plain value; got {shown(value)}")
    shape, name = value["shape"], value["dtype"]
    whole = isinstance(shape, list | tuple) and all(
        isinstance(size, int) and not isinstance(size, bool) for size in shape
    )
    if not whole or any(size < 0 for size in shape):
        raise ValueError(f"{where}: shape: expected a list of whole numbers from 0; got {shown(shape)}")
    dtype = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(dtype, torch.dtype) or dtype not in BUILT:
        known = ", ".join(str(built).removeprefix("torch.") for built in BUILT)
        raise ValueError(f"{where}: dtype: expected one of {known}; got {shown(name)}")
    return math.prod(shape)


def from_description(description: Mapping[str, Any], device: torch.device | str = "cpu") -> Example:
    """An example of the described shapes: seeded noise for floats, ones for integers (a valid token, an open mask).

    Raises ValueError as `check_description`.
    """
    check_description(description, "inputs")
    generator = torch.Generator().manual_seed(0)

    def make(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        dtype = getattr(torch, value["dtype"])
        if dtype.is_floating_point:
            return torch.randn(*value["shape"], generator=generator).to(device, dtype)
        return torch.ones(*value["shape"], dtype=dtype, device=device)

    return mapped(make, description["args"], description["kwargs"])


def rows_of(example: Example) -> int:
    """Number of inputs in an example: the length of its first tensor, or 1 when it has none."""
    args, kwargs = example
    return next((len(value) for value in [*args, *kwargs.values()] if isinstance(value, Tensor)), 1)
