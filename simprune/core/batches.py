"""What a batch is: a tensor, `(inputs, labels)`, or a dict as from transformers; and how a model is run on one."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

LABEL_KEYS = ("labels", "label")
# Cross attention and its projections of what the encoder gives, by name.
CROSS = re.compile(r"^(encoder_attn|encoder_attention|EncDecAttention|cross_?attn|cross_?attention)$", re.IGNORECASE)
KEYS_AND_VALUES = ("k_proj", "v_proj", "k", "v", "key", "value")
TOKEN_KEYS = ("decoder_input_ids", "input_ids")  # the tokens that outputs belong to; the first that a batch has
# What models return beside their outputs, by the last word of its name: losses, and records of their insides.
LOSSES = ("loss", "losses")
RECORDS = ("hidden_states", "attentions", "past_key_values", "router_logits", "mems", "encoder_last_hidden_state")


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


def rows_at(batch: Any, rows: Tensor, inputs: int | None = None) -> Any:
    """The batch with some of its inputs alone: the rows of every tensor that has one per input, and of its labels.

    Args:
        batch: with its labels, if it has any.
        rows: (inputs,) true for the inputs in question; or their numbers, where `inputs` is given.
        inputs: how many the batch has.

    >>> rows_at({"x": torch.tensor([[1], [2]]), "scale": torch.tensor(3)}, torch.tensor([False, True]))
    {'x': tensor([[2]]), 'scale': tensor(3)}
    >>> rows_at(torch.tensor([[1], [2]]), torch.tensor([1, 1, 0]), inputs=2).flatten()
    tensor([2, 2, 1])
    """
    inputs = len(rows) if inputs is None else inputs
    if isinstance(batch, Tensor):
        return batch[rows.to(batch.device)] if batch.ndim and len(batch) == inputs else batch
    if isinstance(batch, TextBatch):
        return TextBatch(rows_at({**batch}, rows, inputs), batch.documents[rows])
    if isinstance(batch, Mapping):
        return {key: rows_at(value, rows, inputs) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(rows_at(value, rows, inputs) for value in batch)
    return batch


def mask_of(batch: Any) -> Tensor | None:
    """(N, T) attention mask of one batch, true where there is a token and no padding; None when it has none.

    >>> mask_of({"input_ids": torch.ones(1, 2).long(), "attention_mask": torch.tensor([[1, 0]])})
    tensor([[ True, False]])
    """
    return _flat_mask(inputs_of(batch)[1].get("attention_mask"))


def output_mask_of(batch: Any) -> Tensor | None:
    """(N, T) the mask of the tokens that the model's outputs belong to: a decoder's own where a batch feeds a decoder.

    >>> ids, mask = torch.ones(1, 2).long(), torch.tensor([[1, 0]])
    >>> output_mask_of({"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids}) is None
    True
    """
    given = inputs_of(batch)[1]
    if any(key.startswith("decoder_") for key in given):
        return _flat_mask(given.get("decoder_attention_mask"))
    return mask_of(batch)


def mask_at(batch: Any, name: str) -> Tensor | None:
    """(N, T) the mask of the tokens that run through a module.

    Where a batch feeds an encoder and a decoder, each has tokens of its own. Modules are told apart by name; the keys
    and values of cross attention are those of the encoder's tokens.

    Args:
        batch: inputs of a model.
        name: of a module, or of its input, as "layer:input".

    >>> ids, mask = torch.ones(1, 2).long(), torch.tensor([[1, 0]])
    >>> batch = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids}
    >>> mask_at(batch, "encoder.layers.0.fc1"), mask_at(batch, "decoder.layers.0.fc1")
    (tensor([[ True, False]]), None)
    """
    parts = name.partition(":")[0].split(".")
    crossed = parts[-1] in KEYS_AND_VALUES and any(CROSS.search(part) for part in parts[:-1])
    return mask_of(batch) if "encoder" in parts or crossed else output_mask_of(batch)


def _flat_mask(mask: Any) -> Tensor | None:
    return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None


def token_ids_of(batch: Any) -> Tensor | None:
    """(N, T) the tokens that the model's outputs belong to; None for a batch of anything else.

    >>> token_ids_of((torch.tensor([[3, 4]]), None))
    tensor([[3, 4]])
    """
    args, given = inputs_of(batch)
    ids = args[0] if args else next((given[key] for key in TOKEN_KEYS if given.get(key) is not None), None)
    integers = isinstance(ids, Tensor) and ids.ndim == 2 and ids.dtype in (torch.int32, torch.int64)
    return ids if integers else None


def documents_of(batch: Any) -> Tensor | None:
    """(N, T) the number of the document that every token comes from, as a `TextBatch` knows it; None for others."""
    return getattr(batch, "documents", None)


class TextBatch(dict):
    """A batch of windows of text: a model's arguments by name, and beside them the document of every token.

    Args:
        arguments: of the model, such as input_ids and attention_mask.
        documents: (N, T) numbers of documents, negative at padding. Tokens of one document are not independent, which
            confidence bounds respect.

    >>> batch = TextBatch({"input_ids": torch.tensor([[3, 4]])}, documents=torch.tensor([[0, 1]]))
    >>> list(batch), documents_of(batch)
    (['input_ids'], tensor([[0, 1]]))
    """

    def __init__(self, arguments: Mapping[str, Any], documents: Tensor) -> None:
        super().__init__(arguments)
        self.documents = documents


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


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in arguments or an output, inside tuples, lists and mappings.

    >>> [len(tensor) for tensor in tensors_in(([torch.ones(2)], {"mask": torch.ones(3), "more": None}))]
    [2, 3]
    """
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)


def first_tensor(value: Any) -> Tensor | None:
    """The main tensor that a module returns or gets: itself, `logits`, or the first one inside that is no loss.

    >>> first_tensor({"loss": torch.tensor(0.5), "logits": torch.zeros(2, 3)}).shape
    torch.Size([2, 3])
    """
    logits = getattr(value, "logits", None)
    value = logits if isinstance(logits, Tensor) else value
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping) and isinstance(value.get("logits"), Tensor):
        return value["logits"]
    inside = _inside(value)
    items = [item for key, item in inside.items() if not _ends(key, LOSSES)] or inside.values()
    return next((tensor for item in items if (tensor := first_tensor(item)) is not None), None)


def outputs_of(value: Any) -> dict[str, Tensor]:
    """All outputs in what a model returns, by name: the floating-point tensors with one entry or more per input.

    Names are keys, fields or positions, joined by dots; a tensor alone is "output". Losses, scalars and tensors of
    other types are no outputs. Records of the inside, such as the hidden states of transformers models, are outputs
    only where there is nothing else. A tensor that stands in two places is one output.

    >>> z = torch.zeros(2, 3)
    >>> list(outputs_of(z)), list(outputs_of((z, {"boxes": [z + 1, z + 2]})))
    (['output'], ['0', '1.boxes.0', '1.boxes.1'])
    >>> list(outputs_of({"loss": z.sum(), "logits": z, "hidden_states": (z + 1, z + 2)}))
    ['logits']
    """
    leaves: dict[str, Tensor] = {}
    _collect(value, "", leaves)
    outputs = {name: tensor for name, tensor in leaves.items() if not _recorded(name)} or leaves
    return {name or "output": tensor for name, tensor in outputs.items()}


def _collect(value: Any, name: str, leaves: dict[str, Tensor]) -> None:
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.ndim:
            twin = next((key for key, other in leaves.items() if other is value), None)
            if twin is not None and name == "logits":
                del leaves[twin]
            if twin is None or name == "logits":
                leaves[name] = value
        return
    for key, item in _inside(value).items():
        if not _ends(key, LOSSES):
            _collect(item, f"{name}.{key}" if name else key, leaves)


def _inside(value: Any) -> dict[str, Any]:
    """What a container holds, by key, field or position; nothing for anything else."""
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    if isinstance(value, tuple | list):
        names = getattr(value, "_fields", None) or map(str, range(len(value)))
        return dict(zip(names, value, strict=True))
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    logits = getattr(value, "logits", None)
    return {"logits": logits} if isinstance(logits, Tensor) else {}


def _recorded(name: str) -> bool:
    return any(_ends(part, RECORDS) for part in name.split("."))


def _ends(key: str, words: Sequence[str]) -> bool:
    return any(key == word or key.endswith(f"_{word}") for word in words)


def device_of(model: nn.Module) -> torch.device:
    """Device of the first parameter or buffer (CPU when there is none)."""
    return next((tensor.device for tensor in chain(model.parameters(), model.buffers())), torch.device("cpu"))


def call(model: nn.Module, batch: Any) -> Tensor:
    """Main output of the model on one batch (class scores, tokens, an embedding), on the model's device.

    It is `logits` where an output has this name, else the first output.
    """
    args, kwargs = move(inputs_of(batch), device_of(model))
    output = main_output(model(*args, **kwargs))
    if output is None:
        raise ValueError(f"{type(model).__name__} returned no tensor; return logits, a tuple or a dict with them")
    return output


def call_all(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """All outputs of the model on one batch, by name (see `outputs_of`), on the model's device.

    Where the model returns no such output, it is the first tensor, whatever its type.

    Raises:
        ValueError: where the model returns no tensor.
    """
    args, kwargs = move(inputs_of(batch), device_of(model))
    outputs = all_tensors(model(*args, **kwargs))
    if not outputs:
        raise ValueError(f"{type(model).__name__} returned no tensor; return logits, a tuple or a dict with them")
    return outputs


def all_tensors(value: Any) -> dict[str, Tensor]:
    """All outputs in what a model returns; the first tensor, whatever its type, where there is no output."""
    outputs, first = outputs_of(value), first_tensor(value)
    return outputs or ({} if first is None else {"output": first})


def main_output(value: Any) -> Tensor | None:
    """The main one of the outputs that a model returns; without outputs, the first tensor; None without a tensor."""
    outputs = outputs_of(value)
    return outputs[main_name(outputs)] if outputs else first_tensor(value)


def main_name(outputs: Mapping[str, object]) -> str:
    """The name of the main output: "logits", else the first."""
    return "logits" if "logits" in outputs else next(iter(outputs))


def checked(batches: Iterable, name: str) -> Iterable:
    """The batches, if they can be walked more than once; a tensor or a dict is one batch.

    Args:
        batches: an iterable of batches.
        name: what errors call them.

    Raises:
        ValueError: for a generator, which would be used up by the first walk, for what is not iterable, and for inputs
            with their labels that are in no list.
    """
    if isinstance(batches, Tensor | Mapping):
        return [batches]
    if isinstance(batches, np.ndarray):
        raise ValueError(f"{name}: expected batches; got an array of numpy; give [torch.as_tensor(array)]")
    if _one_batch(batches):
        raise ValueError(f"{name}: expected batches; got one, (inputs, labels); give [(inputs, labels)]")
    if isinstance(batches, Dataset) and not isinstance(batches, Iterable):
        raise ValueError(
            f"{name}: expected batches; got a data set of single inputs, {type(batches).__name__}; give "
            "torch.utils.data.DataLoader(dataset, batch_size=64)"
        )
    if isinstance(batches, str):
        raise ValueError(f"{name}: expected batches of tensors; got the text {batches!r}; load the inputs first")
    if isinstance(batches, Iterator) or not isinstance(batches, Iterable):
        hint = "; use list(...)" if isinstance(batches, Iterator) else ""
        raise ValueError(
            f"{name} must be an iterable of batches that can be walked more than once (a list, a DataLoader); "
            f"got {type(batches).__name__}{hint}"
        )
    return batches


def _one_batch(batches: Any) -> bool:
    """Whether a tuple holds inputs and their labels, rather than two batches."""
    if not isinstance(batches, tuple) or len(batches) != 2 or not all(isinstance(part, Tensor) for part in batches):
        return False
    inputs, labels = batches
    return labels.ndim < inputs.ndim and labels.ndim > 0 and len(labels) == len(inputs)
