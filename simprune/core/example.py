"""A small example input: cut from a batch, described in a plan, built again from the description."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from simprune.core.batches import inputs_of, tensors_in
from simprune.core.cost import Example
from simprune.core.options import shown

ELEMENTS = 1 << 27  # the most numbers in an example that is built from a description, half a GiB in float32
# types of which `from_description` makes tensors
BUILT = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip
DEPTH = 8  # of containers within an argument
ROWS = 2  # the smallest batch on which BatchNorm can run in training mode


def example_of(batch: Any) -> Example:
    """Arguments of the model cut to the first two rows of a batch (one row is doubled)."""
    return mapped(_cut, *inputs_of(batch))


def as_batch(example: Example) -> Any:
    """An example as a batch without labels, for what walks batches.

    >>> as_batch(((1, 2), {})), as_batch(((), {"x": 1}))
    (((1, 2), None), {'x': 1})
    """
    args, kwargs = example
    return kwargs or (args, None)


def mapped(function: Callable[[Any], Any], args: Sequence, kwargs: Mapping[str, Any]) -> tuple[tuple, dict]:
    """Arguments with a function applied to every value, also inside of tuples, lists and mappings.

    >>> mapped(abs, (-1, {"sizes": [-3]}), {"scale": -2})
    ((1, {'sizes': [3]}), {'scale': 2})
    """

    def of(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: of(item) for key, item in value.items()}
        return type(value)(map(of, value)) if type(value) in (tuple, list) else function(value)

    return tuple(map(of, args)), {key: of(value) for key, value in kwargs.items()}


def _cut(value: Any) -> Any:
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    if len(value) == 0:
        raise ValueError("the first batch is empty; give at least one row")
    return value[:ROWS].clone() if len(value) >= ROWS else value.repeat(ROWS, *[1] * (value.ndim - 1))


def describe(example: Example, values: bool = False) -> dict[str, Any]:
    """Shapes and types of an example, as a plan stores them.

    Args:
        example: arguments of a model.
        values: whether the entries of tensors of whole numbers are stored too.

    >>> describe(((torch.zeros(2, 3),), {}))
    {'args': [{'shape': [2, 3], 'dtype': 'float32'}], 'kwargs': {}}
    >>> describe(((torch.tensor([[3, 4]]),), {}), values=True)["args"]
    [{'shape': [1, 2], 'dtype': 'int64', 'values': [3, 4]}]
    """
    args, kwargs = example
    named = {key: _describe(value, values) for key, value in kwargs.items()}
    return {"args": [_describe(value, values) for value in args], "kwargs": named}


def _describe(value: Any, values: bool) -> Any:
    if isinstance(value, Mapping):
        return {key: _describe(item, values) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_describe(item, values) for item in value]
    if isinstance(value, Tensor):
        entry = {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        return entry | ({"values": value.flatten().tolist()} if values and _is_whole(value.dtype) else {})
    return value if isinstance(value, bool | int | float | str | type(None)) else None


def _is_whole(dtype: torch.dtype) -> bool:
    return not dtype.is_floating_point and not dtype.is_complex


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


def _checked_size(value: Any, where: str, depth: int = 0) -> int:
    """Numbers in a described value; ValueError for what describes none."""
    if isinstance(value, bool | int | float | str | type(None)):
        return 0
    if not _is_of_tensor(value):
        if not isinstance(value, list | tuple | Mapping) or depth == DEPTH:
            raise ValueError(f"{where}: expected shape and dtype, or a plain value; got {shown(value)}")
        items = value.values() if isinstance(value, Mapping) else value
        return sum(_checked_size(item, where, depth + 1) for item in items)
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
    if "values" in value:
        _check_values(value["values"], math.prod(shape), dtype, where)
    return math.prod(shape)


def _check_values(values: Any, size: int, dtype: torch.dtype, where: str) -> None:
    """Raise ValueError unless these are the entries of a tensor of whole numbers."""
    whole = _is_whole(dtype) and isinstance(values, list) and all(type(item) in (int, bool) for item in values)
    low, high = 0, 1
    if whole and dtype is not torch.bool:
        low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    if not whole or len(values) != size or not all(low <= item <= high for item in values):
        raise ValueError(f"{where}: values: expected {size} whole numbers that fit {dtype}; got {shown(values)}")


def _is_of_tensor(description: Any) -> bool:
    """Whether a part of a description stands for a tensor; other mappings are arguments of their own."""
    return isinstance(description, Mapping) and {"shape", "dtype"} <= set(description) <= {"shape", "dtype", "values"}


def from_description(description: Mapping[str, Any], device: torch.device | str = "cpu") -> Example:
    """An example of the described shapes: seeded noise for floats, for integers the values that are described, or ones.

    Ones are a valid token and an open mask.

    Raises ValueError as `check_description`.
    """
    check_description(description, "inputs")
    generator = torch.Generator().manual_seed(0)

    def built(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [*map(built, value)]
        if not isinstance(value, Mapping):
            return value
        if not _is_of_tensor(value):
            return {key: built(item) for key, item in value.items()}
        dtype = getattr(torch, value["dtype"])
        if "values" in value:
            return torch.tensor(value["values"], dtype=dtype, device=device).reshape(value["shape"])
        if dtype.is_floating_point:
            return torch.randn(*value["shape"], generator=generator).to(device, dtype)
        return torch.ones(*value["shape"], dtype=dtype, device=device)

    return tuple(map(built, description["args"])), built(description["kwargs"])


def rows_of(example: Example) -> int:
    """Number of inputs in an example: the length of its first tensor, or 1 when it has none."""
    return next((len(value) for value in tensors_in(example) if value.ndim), 1)
