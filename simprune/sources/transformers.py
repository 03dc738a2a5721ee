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
    """A model of transformers in evaluation mode: `Auto...from_pretrained(name, **options)`; runs no remote code.

    Args:
        name: a folder that `save_pretrained` wrote, or a name on the hub.
        task: one of `TASKS`.
        options: keyword arguments of `from_pretrained`.

    Raises:
        ValueError: for an unknown task, for a path that does not exist, for a name that cannot be loaded (offline), and
            when transformers is not installed.
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

    Args:
        path: the text file for calibration.
        tokenizer: a name on the hub or a local folder; in a recipe that of the model, unless it is named.
        test: the text file for tests, or None.
        batch_size: lines of a batch.
        length: tokens to which lines are cut or padded.
        rows: lines that are read of a file; None: all.
        keys: what batches hold of the tokenizer's output.

    Returns:
        Batches are dicts of (batch, length) tensors.

    Raises:
        FileNotFoundError: for a missing file.
        ValueError: for a file without text.
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
        lines = lines[:rows]
        options = {"max_length": length, "padding": "max_length", "truncation": True, "return_tensors": "pt"}
        tokens = [split(lines[start : start + batch_size], **options) for start in range(0, len(lines), batch_size)]
        return [{key: batch[key] for key in keys if key in batch} for batch in tokens]

    return Data(batches(path), test=None if test is None else batches(test))


def _automodel(name: str, task: str, **options: Any) -> nn.Module:
    if task not in TASKS:
        raise ValueError(f"no task {task!r}; {did_you_mean(task, TASKS)}")
    return _load(TASKS[task], name, **options).eval()


def _load(kind: str, name: str, **options: Any) -> Any:
    """`transformers.KIND.from_pretrained(name, **options)` with errors of one line."""
    try:
        import transformers
    except ImportError:
        raise ValueError("transformers is not installed; pip install 'simprune[hf]'") from None
    folder = Path(name).expanduser()
    if name.startswith((".", "/", "~")) and not folder.is_dir():
        raise ValueError(f"no folder {name}; expected one that save_pretrained wrote, or a name on the hub")
    try:
        return getattr(transformers, kind).from_pretrained(str(folder) if name.startswith("~") else name, **options)
    except OSError as error:  # also for a name that is not on the hub, or no network
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{name} cannot be loaded: {reason} (without a network give a local folder)") from error
