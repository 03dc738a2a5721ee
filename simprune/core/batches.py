"""What a batch is: a tensor, `(inputs, labels)`, or a dict as from transformers; and how a model is run on one."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

LABEL_KEYS = ("labels", "label")


def inputs_of(batch: Any) -> tuple[tuple, dict]:
    """Positional and keyword arguments of the model for one batch.

    >>> inputs_of((torch.zeros(2, 3), torch.tensor([0, 1])))[0][0].shape
    torch.Size([2, 3])
    """
    if isinstance(batch, Tensor):
        return (batch,), {}
    if isinstance(batch, Mapping):
        return (), {key: value for key, value in batch.items() if key not in LABEL_KEYS}
    if isinstance(batch, tuple | list) and len(batch) in (1, 2):
        inputs = batch[0]
        if isinstance(inputs, Mapping):
            return (), dict(inputs)
        return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}
    length = f" of length {len(batch)}" if isinstance(batch, tuple | list) else ""
    what = f"a batch must be a tensor, (inputs, labels) or a dict; got {type(batch).__name__}{length}"
    raise ValueError(f"{what}; wrap several inputs as ((input_1, input_2), labels)")


def labels_of(batch: Any) -> Tensor | None:
    """Labels of one batch, or None.

    >>> labels_of({"input_ids": torch.zeros(1, 4), "labels": torch.tensor([3])})
    tensor([3])
    """
    if isinstance(batch, Mapping):
        return next((batch[key] for key in LABEL_KEYS if key in batch), None)
    if isinstance(batch, tuple | list) and len(batch) == 2 and batch[1] is not None:
        return torch.as_tensor(batch[1])
    return None


def mask_of(batch: Any) -> Tensor | None:
    """(N, T) attention mask of one batch, true where there is a token and no padding; None when it has none.

    >>> mask_of({"input_ids": torch.ones(1, 2).long(), "attention_mask": torch.tensor([[1, 0]])})
    tensor([[ True, False]])
    """
    mask = inputs_of(batch)[1].get("attention_mask")
    return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None


def move(value: Any, device: torch.device | str) -> Any:
    """The same batch with every tensor on `device`."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: move(item, device) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(move(item, device) for item in value)
    return value


def copied(value: Any) -> Any:
    """Arguments with their tensors and containers copied, since modules may write into both.

    >>> arguments = ([torch.ones(2)], {"mask": None})
    >>> copy = copied(arguments)
    >>> arguments[0].append(torch.ones(2))
    >>> len(copy[0])
    1
    """
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(map(copied, value))
    return value


def first_tensor(value: Any) -> Tensor | None:
    """The main tensor of a module's output: itself, `.logits`, or the first one inside a tuple or dict."""
    logits = getattr(value, "logits", None)
    value = logits if isinstance(logits, Tensor) else value
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return next((tensor for item in value if (tensor := first_tensor(item)) is not None), None)
    return None


def device_of(model: nn.Module) -> torch.device:
    """Device of the first parameter or buffer (CPU when there is none)."""
    return next((tensor.device for tensor in chain(model.parameters(), model.buffers())), torch.device("cpu"))


def call(model: nn.Module, batch: Any) -> Tensor:
    """Output of the model on one batch as one tensor (class scores, tokens, an embedding), on the model's device."""
    args, kwargs = move(inputs_of(batch), device_of(model))
    output = first_tensor(model(*args, **kwargs))
    if output is None:
        raise ValueError(f"{type(model).__name__} returned no tensor; return logits, a tuple or a dict with them")
    return output


def checked(batches: Iterable, name: str) -> Iterable:
    """The batches, if they can be walked more than once; a tensor or a dict is one batch.

    Args:
        batches: an iterable of batches.
        name: what errors call them.

    Raises:
        ValueError: for a generator, which would be used up by the first walk, and for what is not iterable.
    """
    if isinstance(batches, Tensor | Mapping):
        return [batches]
    if isinstance(batches, Iterator) or not isinstance(batches, Iterable):
        raise ValueError(
            f"{name} must be an iterable of batches that can be walked more than once (a list, a DataLoader); "
            f"got {type(batches).__name__}; use list(...)"
        )
    return batches
