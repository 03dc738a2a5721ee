"""Models and texts of transformers, by name on the hub or from a local folder; needs the extra `hf`."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from simprune.core.names import did_you_mean
from simprune.core.pretrained import load
from simprune.core.records import KINDS, files_of
from simprune.core.registry import register
from simprune.sources._windows import Texts
from simprune.sources.data import Data

TASKS = {
    "base": "AutoModel",
    "causal_lm": "AutoModelForCausalLM",
    "masked_lm": "AutoModelForMaskedLM",
    "seq2seq_lm": "AutoModelForSeq2SeqLM",
    "sequence_classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "image_classification": "AutoModelForImageClassification",
}


@register("model", "transformers")
def _model(*, pretrained: str, task: str = "base", **options: Any) -> nn.Module:
    """A model of transformers, by name on the hub, from a local folder or a GGUF file in it (needs simprune[hf])."""
    return _automodel(pretrained, task, **options)


def pretrained(name: str, task: str = "base", **options: Any) -> nn.Module:
    """A model of transformers in evaluation mode: `Auto...from_pretrained(name, **options)`; runs no remote code.

    Args:
        name: a folder that `save_pretrained` wrote, or a name on the hub; with a GGUF file behind it, as in
            "models/llama/llama-q4.gguf", or named by `gguf_file`, the weights of that file in full.
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
    path: str | Sequence[str],
    tokenizer: str | None = None,
    train: str | Sequence[str] | None = None,
    test: str | Sequence[str] | None = None,
    validation: str | Sequence[str] | None = None,
    batch_size: int = 8,
    length: int = 128,
    rows: int | None = 1024,
    padding: bool = False,
    stride: int | None = None,
    documents: str | None = None,
    column: str = "text",
    keys: Sequence[str] = ("input_ids", "attention_mask"),
    seed: int = 0,
) -> Data:
    """Text files, packed into windows of tokens or padded line by line (needs simprune[hf]).

    Documents follow one another in full windows, with the tokenizer's end token behind every one. Standard error says
    how many tokens are used.

    Args:
        path: files for calibration, as all files here: one, several, or a pattern such as texts/*.jsonl. Their types
            are .txt; .jsonl and .json, whose records are texts or mappings with a text or with `messages`, to which the
            tokenizer's chat template is applied; and .parquet, where `datasets` is installed.
        tokenizer: a name on the hub, a local folder or a GGUF file; in a recipe that of the model, unless it is named.
        train: files for fine-tuning, or None.
        test: files for tests, or None.
        validation: files by which an epoch of the training is chosen, or None.
        batch_size: windows of a batch.
        length: tokens of a window.
        rows: windows that are used of every split; None: all.
        padding: one document a window, padded or cut to `length`, as for sentences.
        stride: tokens from one test window's start to the next one's, for perplexity with more context; None: `length`.
        documents: what a document is in a .txt: blocks of lines with an empty line between them, lines, or files; None:
            blocks, with padding lines.
        column: the name of the text in a mapping.
        keys: what batches hold of the tokenizer's output.
        seed: of the order of training windows.

    Returns:
        Batches are dicts of (batch, length) tensors, which know the document of every token.

    Raises:
        FileNotFoundError: for a missing file.
        ValueError: for a wrong option, for files without enough text, and for records without text.
    """
    if tokenizer is None:
        raise ValueError("texts needs a tokenizer: its name on the hub, or a local folder")
    if length < 2 or (rows is not None and rows < 1):
        raise ValueError(f"texts: length must be at least 2 and rows at least 1; got length={length}, rows={rows}")
    if stride is not None and (padding or not 1 <= stride < length):
        what = "padded windows have none" if padding else f"it must be from 1 to length - 1 = {length - 1}"
        raise ValueError(f"texts: stride={stride} does not fit; {what}")
    if documents is not None and documents not in KINDS:
        raise ValueError(f"texts: unknown documents {documents!r}; {did_you_mean(documents, KINDS)}")
    for paths in (path, train, test, validation):
        files_of(paths if paths is not None else path)
    how = Texts(load("AutoTokenizer", tokenizer), length, rows, padding, documents, column, keys)
    return Data(
        how.windows("calibration", path, batch_size),
        None if train is None else how.windows("train", train, batch_size, shuffle=seed),
        None if test is None else how.windows("test", test, batch_size, stride),
        None if validation is None else how.windows("validation", validation, batch_size),
    )


def _automodel(name: str, task: str, **options: Any) -> nn.Module:
    if task not in TASKS:
        raise ValueError(f"no task {task!r}; {did_you_mean(task, TASKS)}")
    return load(TASKS[task], name, **options).eval()
