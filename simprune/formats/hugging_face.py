"""The format "transformers": a folder that `from_pretrained` opens."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from simprune.core.cost import Example
from simprune.core.pretrained import load
from simprune.core.registry import register
from simprune.edit.reopening import is_pretrained, saved_in
from simprune.formats.written import Written, outputs


@register("format", "transformers")
def hugging_face(
    model: nn.Module,
    example: Example,
    folder: Path,
    *,
    tokenizer: str | None = None,
    max_shard_size: str = "5GB",
) -> Written:
    """A Hugging Face folder: configuration, weights in shards of safetensors, tokenizer, generation settings.

    Args:
        model: of transformers.
        example: its arguments.
        folder: an empty folder.
        tokenizer: the name, folder or GGUF file from which the tokenizer comes; None: what the model was loaded from.
        max_shard_size: the largest file of weights.
    """
    if not is_pretrained(model):
        raise ValueError(
            f"format transformers: expected a model of transformers; got a {type(model).__name__}: choose torch or onnx"
        )
    opened, outcome = saved_in(model, str(folder), example, max_shard_size=max_shard_size)
    if opened is None or (not outcome.opens and outcome.difference is None):
        raise ValueError(
            f"format transformers: from_pretrained does not open this model, because {outcome.reason}; keep the bundle,"
            " choose torch or onnx, or make a plan of equal widths"
        )

    def run(args: tuple, kwargs: Mapping[str, Any]) -> list[Tensor]:
        return list(outputs(opened, args, kwargs).values())

    kind = type(model).__name__
    usage = f'from transformers import {kind}\n\nmodel = {kind}.from_pretrained(".")'
    return Written(run, usage, [_preprocessing(model, folder, tokenizer)])


def _preprocessing(model: Any, folder: Path, source: str | None) -> str:
    """Write the tokenizer, or for images and sound their processor, beside the model; what was written, in words."""
    takes_tokens = getattr(model, "main_input_name", "input_ids") == "input_ids"
    kind, word = ("AutoTokenizer", "tokenizer") if takes_tokens else ("AutoProcessor", "processor")
    name = source or getattr(model, "name_or_path", "") or ""
    if not name:
        return f"no {word} was written: the model does not say what it was loaded from"
    try:
        part = load(kind, name)
    except Exception as error:  # classes of tokenizers and processors refuse with errors of any type
        if source is not None and takes_tokens:
            raise ValueError(f"tokenizer: {_line(error)}") from error
        return f"no {word} was written: {_line(error)}"
    part.save_pretrained(folder)
    return f"{word} of {name}"


def _line(error: Exception) -> str:
    """The first line of an error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
