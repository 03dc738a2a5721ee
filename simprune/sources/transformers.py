"""Models and texts of transformers, by name on the hub or from a local folder; needs the extra `hf`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from simprune.core.names import did_you_mean
from simprune.core.registry import register
from simprune.sources.data import Data

TASKS = {
    "base": "AutoModel",
    "causal_lm": "AutoModelForCausalLM",
    "masked_lm": "AutoModelForMaskedLM",
    "sequence_classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "image_classification": "AutoModelForImageClassification",
}


@register("model", "transformers")
def _model(*, pretrained: str, task: str = "base", **options: Any) -> nn.Module:
    """A model of transformers, by name on the hub or from a local folder (needs simprune[hf])."""
    return _automodel(pretrained, task, **options)


def pretrained(name: str, task: str = "base", **options: Any) -> nn.Module:
    """`Auto...from_pretrained(name, **options)` for one of `TASKS`, in evaluation mode; no remote code is run.

    `name` is a folder that `save_pretrained` wrote, or a name on the hub. ValueError for an unknown task, for a path
    that does not exist, for a name that cannot be loaded (offline), and when transformers is not installed.
    """
    return _automodel(name, task, **options)


@register("data", "texts")
def texts(
    *,
    path: str,
    tokenizer: str | None = None,
    test: str | None = None,
    batch_size: int = 8,
    length: int = 128,
    rows: int | None = 1024,
    keys: Sequence[str] = ("input_ids", "attention_mask"),
) -> Data:
    """A text file, one input per line, tokenised as the model expects (needs simprune[hf]).

    Batches are dicts of (batch, length) tensors. Lines are cut or padded to `length` tokens; `rows` limits how many are
    read. `tokenizer`: in a recipe that of the model, unless it is named. FileNotFoundError for a missing file,
    ValueError for one without text.
    """
    if tokenizer is None:
        raise ValueError("texts needs a tokenizer: its name on the hub, or a local folder")
    split = _load("AutoTokenizer", tokenizer)
    if split.pad_token is None:
        split.pad_token = split.eos_token

    def batches(file: str) -> list[dict]:
        lines = [line for line in Path(file).expanduser().read_text(encoding="utf-8").splitlines() if line.strip()]
        if not lines:
            raise ValueError(f"{file} has no text; expected one input per line")
        options = {"max_length": length, "padding": "max_length", "truncation": True, "return_tensors": "pt"}
        chosen = lines[:rows]
        found = [split(chosen[start : start + batch_size], **options) for start in range(0, len(chosen), batch_size)]
        return [{key: batch[key] for key in keys if key in batch} for batch in found]

    return Data(batches(path), test=None if test is None else batches(test))


def _automodel(name: str, task: str, **options: Any) -> nn.Module:
    if task not in TASKS:
        raise ValueError(f"no task {task!r}; {did_you_mean(task, TASKS)}")
    return _load(TASKS[task], name, **options).eval()


def _load(kind: str, name: str, **options: Any) -> Any:
    try:
        return getattr(_transformers(), kind).from_pretrained(_place(name), **options)
    except OSError as error:  # also for a name that is not on the hub, or no network
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{name} cannot be loaded: {reason} (without a network give a local folder)") from error


def _place(name: str) -> str:
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise ValueError(f"no folder {name}; expected one that save_pretrained wrote, or a name on the hub")
    return str(Path(name).expanduser()) if name.startswith("~") else name


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise ValueError("transformers is not installed; pip install 'simprune[hf]'") from None
    return transformers
