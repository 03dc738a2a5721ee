"""Labels of a batch: of one output, or of several in a mapping or a tuple like the one that the model returns."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simprune.core.batches import LABEL_KEYS, main_name

Labels = Tensor | Mapping[str, Tensor | None]  # of the main output, or by the name of the output


def labels_of(batch: Any) -> Tensor | None:
    """Labels of one batch, those of the main output where there are several; None without labels.

    >>> labels_of({"input_ids": torch.zeros(1, 4), "labels": torch.tensor([3])})
    tensor([3])
    >>> labels_of((torch.zeros(2, 4), {"scores": torch.tensor([0, 1]), "depth": torch.zeros(2, 4)}))
    tensor([0, 1])
    """
    named = labels_by_output(batch)
    if named:
        return named[main_name(named)]
    labels = _labels_in(batch)
    return labels if labels is None or isinstance(batch, Mapping) else tensor_of(labels)


def labels_by_output(batch: Any) -> dict[str, Tensor | None]:
    """Labels of one batch by the name of their output; none where they are of one output.

    >>> labels_by_output((torch.zeros(2, 4), (torch.tensor([0, 1]), None)))
    {'0': tensor([0, 1]), '1': None}
    """
    return by_output(_labels_in(batch))


def check_labels(batch: Any, outputs: Mapping[str, object]) -> None:
    """Raise ValueError unless labels by output are those of a model's outputs, the main one's first.

    >>> check_labels((torch.zeros(2, 4), {"depth": None}), {"scores": torch.zeros(2, 3), "depth": torch.zeros(2, 1)})
    Traceback (most recent call last):
    ValueError: labels: expected those of the main output first, scores, or None for it; got depth
    """
    named = labels_by_output(batch)
    unknown = [name for name in named if name not in outputs]
    if unknown:
        raise ValueError(
            f"labels: expected a tensor, or labels of the outputs {', '.join(outputs)}; got some of {unknown[0]}; give "
            "those of the main output, or None"
        )
    if named and main_name(named) != main_name(outputs):
        main = main_name(outputs)
        raise ValueError(
            f"labels: expected those of the main output first, {main}, or None for it; got {', '.join(named)}"
        )


def _labels_in(batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return next((batch[key] for key in LABEL_KEYS if key in batch), None)
    return batch[1] if isinstance(batch, tuple | list) and len(batch) == 2 else None


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
