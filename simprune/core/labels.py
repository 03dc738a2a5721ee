"""Labels of several outputs: a mapping or a tuple like the one that the model returns."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Labels = Tensor | Mapping[str, Tensor | None]  # of the main output, or by the name of the output


def by_output(labels: Any) -> dict[str, Tensor | None]:
    """Labels by the name of their output; none where they are those of one output.

    Names are those of outputs: keys or positions, joined by dots. A mapping is by output, and so is a tuple or a list
    of tensors, mappings or None; a list of numbers is one label for every input.

    Raises:
        ValueError: for labels that are neither numbers nor None.

    >>> by_output({"boxes": torch.zeros(2, 4), "aux": (torch.zeros(2), None)}).keys()
    dict_keys(['boxes', 'aux.0', 'aux.1'])
    >>> by_output([0, 1])
    {}
    """
    named: dict[str, Tensor | None] = {}
    if _is_by_output(labels):
        _collect(labels, "", named)
    return named


def tensor_of(labels: Any) -> Tensor:
    """Labels of one output as a tensor; ValueError where they are none."""
    try:
        return torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        got = f"got a {type(labels).__name__}; give those of the main output, or None"
        raise ValueError(f"labels: expected a tensor, one label per input, or such tensors by output; {got}") from None


def _is_by_output(labels: Any) -> bool:
    if isinstance(labels, tuple | list):
        kinds = (Tensor, np.ndarray, Mapping, type(None))
        return any(isinstance(item, kinds) and getattr(item, "ndim", 1) for item in labels)
    return isinstance(labels, Mapping)


def _collect(labels: Any, name: str, named: dict[str, Tensor | None]) -> None:
    if not _is_by_output(labels):
        named[name] = None if labels is None else tensor_of(labels)
        return
    for key, item in labels.items() if isinstance(labels, Mapping) else enumerate(labels):
        _collect(item, f"{name}.{key}" if name else str(key), named)
