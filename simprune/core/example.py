"""A small example input: cut from a batch, described in a plan, built again from the description."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from simprune.core.batches import inputs_of
from simprune.core.cost import Example

ROWS = 2  # the smallest batch on which BatchNorm can run in training mode


def example_of(batch: Any) -> Example:
    """Arguments of the model cut to the first two rows of a batch (one row is doubled)."""
    return _mapped(_cut, *inputs_of(batch))


def _mapped(function: Callable[[Any], Any], args: Sequence, kwargs: Mapping[str, Any]) -> tuple[tuple, dict]:
    """Arguments with a function applied to every value."""
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
    args, kwargs = _mapped(_describe, *example)
    return {"args": list(args), "kwargs": kwargs}


def _describe(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    return value if isinstance(value, bool | int | float | str | type(None)) else None


def from_description(description: Mapping[str, Any], device: torch.device | str = "cpu") -> Example:
    """An example of the described shapes: seeded noise for floats, ones for integers (a valid token, an open mask)."""
    generator = torch.Generator().manual_seed(0)

    def make(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        dtype = getattr(torch, value["dtype"])
        if dtype.is_floating_point:
            return torch.randn(*value["shape"], generator=generator).to(device, dtype)
        return torch.ones(*value["shape"], dtype=dtype, device=device)

    return _mapped(make, description["args"], description["kwargs"])


def rows_of(example: Example) -> int:
    """Number of inputs in an example: the length of its first tensor, or 1 when it has none."""
    args, kwargs = example
    return next((len(value) for value in [*args, *kwargs.values()] if isinstance(value, Tensor)), 1)
