"""A small example input: cut from a batch, described in a plan, built again from the description."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from simprune.core.batches import inputs_of
from simprune.core.cost import Example

ROWS = 2  # the smallest batch on which BatchNorm can run in training mode


def example_of(batch: Any) -> tuple[tuple, dict]:
    """Arguments of the model cut to the first two rows of a batch (one row is doubled)."""
    args, kwargs = inputs_of(batch)
    return tuple(_cut(value) for value in args), {key: _cut(value) for key, value in kwargs.items()}


def _cut(value: Any) -> Any:
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    if len(value) == 0:
        raise ValueError("the first batch is empty; give at least one row")
    return value[:ROWS].clone() if len(value) >= ROWS else value.repeat(ROWS, *[1] * (value.ndim - 1))


def describe(example: tuple[tuple, dict]) -> dict:
    """Shapes and types of an example, as a plan stores them.

    >>> describe(((torch.zeros(2, 3),), {}))
    {'args': [{'shape': [2, 3], 'dtype': 'float32'}], 'kwargs': {}}
    """
    args, kwargs = example
    return {
        "args": [_describe(value) for value in args],
        "kwargs": {key: _describe(value) for key, value in kwargs.items()},
    }


def _describe(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    return value if isinstance(value, bool | int | float | str | type(None)) else None


def from_description(description: Mapping, device: torch.device | str = "cpu") -> tuple[tuple, dict]:
    """An example of the described shapes: seeded noise for floats, ones for integers (a valid token, an open mask)."""
    generator = torch.Generator().manual_seed(0)

    def make(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        dtype = getattr(torch, value["dtype"])
        if dtype.is_floating_point:
            return torch.randn(*value["shape"], generator=generator).to(device, dtype)
        return torch.ones(*value["shape"], dtype=dtype, device=device)

    return (
        tuple(make(value) for value in description["args"]),
        {key: make(value) for key, value in description["kwargs"].items()},
    )


def rows_of(example: Example) -> int:
    """Number of inputs in an example: the length of its first tensor, or 1 when it has none."""
    args, kwargs = example
    return next((len(value) for value in [*args, *kwargs.values()] if isinstance(value, torch.Tensor)), 1)
