"""Texts as batches of tokens: documents one after another in full windows, or padded one by one."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simprune.core.batches import TextBatch
from simprune.core.records import files_of, records
from simprune.sources.data import Batches

IGNORE = -100  # the label of a token that does not count
AT_ONCE = 64  # documents that the tokenizer gets at a time


class Windows:
    """Windows of tokens in batches, which are dicts with the document of every token beside them.

    Args:
        arguments: of the model by name, (windows, length) each.
        documents: (windows, length) the number of every token's document, negative at padding.
        said: how many tokens these are, in words.
        batch_size: windows of a batch.
        shuffle: the seed of the order, or None for the order of the text.
    """

    def __init__(
        self, arguments: dict[str, Tensor], documents: Tensor, said: str, batch_size: int, shuffle: int | None = None
    ) -> None:
        self.names, self.said = list(arguments), said
        self.tokens = int((documents >= 0).sum())
        self.batches = Batches(*arguments.values(), documents, batch_size=batch_size, shuffle=shuffle)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[TextBatch]:
        for *values, documents in self.batches:
            yield TextBatch(dict(zip(self.names, values, strict=True)), documents)


@dataclass(frozen=True)
class Texts:
    """How files become windows.

    Args:
        tokenizer: of transformers.
        length: tokens of a window.
        rows: windows that are read, None for all.
        padding: whether every document has a window of its own, padded or cut to the length.
        kind: what a document is in plain text; None: blocks of lines, or with padding, lines.
        column: the name of the text in records.
        keys: the arguments of the model.
    """

    tokenizer: Any
    length: int
    rows: int | None
    padding: bool = False
    kind: str | None = None
    column: str = "text"
    keys: Sequence[str] = ("input_ids", "attention_mask")
    end: int | None = field(init=False, default=None)  # the token behind every document

    def __post_init__(self) -> None:
        ends = (self.tokenizer.eos_token_id, self.tokenizer.sep_token_id)
        object.__setattr__(self, "end", next((token for token in ends if token is not None), None))

    def windows(
        self,
        name: str,
        paths: str | Sequence[str],
        batch_size: int,
        stride: int | None = None,
        shuffle: int | None = None,
    ) -> Windows:
        """The windows of files; says on standard error how many tokens they have.

        Args:
            name: of the split, as messages call it.
            paths: of the files.
            batch_size: windows of a batch.
            stride: tokens from one window's start to the next one's, None for the length; what two windows share has
                labels in the first of them alone, so that every token counts once.
            shuffle: the seed of the order.

        Raises:
            FileNotFoundError: for a missing file.
            ValueError: for files without enough text, and for records without text.
        """
        files = files_of(paths)
        make = self._padded if self.padding else self._packed
        arguments, documents, said = make(files, stride or self.length)
        windows = Windows(arguments, documents, "", batch_size, shuffle)
        plural = "file" if len(files) == 1 else "files"
        windows.said = f"{name}: {windows.tokens:,} tokens of {len(files)} {plural}, {said}"
        print(windows.said, file=sys.stderr)
        return windows

    def _packed(self, files: Sequence[Path], stride: int) -> tuple[dict[str, Tensor], Tensor, str]:
        """Documents one after another, an end token behind every one, cut into windows."""
        length, most = self.length, None if self.rows is None else (self.rows - 1) * stride + self.length
        tokens: list[int] = []
        sources: list[int] = []
        for number, ids in enumerate(self._documents(files)):
            closed = ids if self.end is None or ids[-1:] == [self.end] else [*ids, self.end]
            tokens += closed
            sources += [number] * len(closed)
            if most is not None and len(tokens) >= most:
                break
        if len(tokens) < length:
            what = f"{len(tokens)} tokens, less than one window of length={length}"
            raise ValueError(f"{_names(files)}: {what}; give more text, a smaller length, or padding=true")
        count = (len(tokens) - length) // stride + 1
        count = count if self.rows is None else min(count, self.rows)
        used = (count - 1) * stride + length
        ids, documents = (
            torch.tensor(values[:used]).unfold(0, length, stride).contiguous() for values in (tokens, sources)
        )
        arguments = {key: value for key, value in self._arguments(ids).items() if key in self.keys}
        said = f"{count:,} windows of {length}"
        if stride < length:
            labels = ids.clone()
            labels[1:, : length - stride] = IGNORE
            arguments["labels"] = labels
            said += f" that start {stride} tokens apart ({used:,} different tokens)"
        said += f", {sources[used - 1] + 1:,} documents"
        if self.rows is None or count < self.rows:
            said += f"; {len(tokens) - used:,} tokens at the end fill no window"
        if self.end is None:
            said += "; the tokenizer has no end token, so nothing is between documents"
        return arguments, documents, said

    def _arguments(self, ids: Tensor) -> dict[str, Tensor]:
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}

    def _padded(self, files: Sequence[Path], _: int) -> tuple[dict[str, Tensor], Tensor, str]:
        """One document a window."""
        if self.tokenizer.pad_token is None:
            if self.tokenizer.eos_token is None:
                raise ValueError("padding: the tokenizer has no padding token and no end token; pack the texts instead")
            self.tokenizer.pad_token = self.tokenizer.eos_token
        lengths = {"max_length": self.length, "padding": "max_length", "truncation": True, "return_tensors": "pt"}
        parts: list[dict[str, Tensor]] = []
        count = 0
        for texts, special in self._texts(files):
            chosen = texts if self.rows is None else texts[: self.rows - count]
            if not chosen:
                break
            parts.append(self.tokenizer(chosen, add_special_tokens=special, verbose=False, **lengths))
            count += len(chosen)
        if not parts:
            raise ValueError(f"{_names(files)} has no text; expected one input per line")
        joined = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        mask = joined["attention_mask"].bool()
        documents = torch.arange(len(mask))[:, None].expand(mask.shape).masked_fill(~mask, -1)
        full = int(mask.all(1).sum())
        said = f"{len(mask):,} texts padded to {self.length}, {full:,} of which fill it or were cut"
        return {key: joined[key] for key in self.keys if key in joined}, documents, said

    def _documents(self, files: Sequence[Path]) -> Iterator[list[int]]:
        """The tokens of every document that has any."""
        for texts, special in self._texts(files):
            for ids in self.tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]:
                if ids:
                    yield list(ids)

    def _texts(self, files: Sequence[Path]) -> Iterator[tuple[list[str], bool]]:
        """Documents, a few at a time, and whether the tokenizer adds its special tokens: a chat template has them."""
        kind = self.kind or ("lines" if self.padding else "blocks")
        waiting: list[str] = []
        before = True
        for text, special in (self._text(*record) for file in files for record in records(file, kind)):
            if waiting and (special != before or len(waiting) == AT_ONCE):
                yield waiting, before
                waiting = []
            waiting.append(text)
            before = special
        if waiting:
            yield waiting, before

    def _text(self, where: str, record: Any) -> tuple[str, bool]:
        """The text of a record, by the tokenizer's template where it is a chat."""
        record = {self.column: record} if isinstance(record, str) else record
        if isinstance(record, dict) and isinstance(record.get(self.column), str):
            return record[self.column], True
        if not isinstance(record, dict) or not isinstance(record.get("messages"), list):
            got = f"keys {', '.join(record)}" if isinstance(record, dict) else type(record).__name__
            raise ValueError(f"{where}: expected a text, or {self.column!r} or 'messages' in a mapping; got {got}")
        if not getattr(self.tokenizer, "chat_template", None):
            raise ValueError(
                f"{where}: it has messages, and the tokenizer has no chat template; give a {self.column!r}"
            )
        return self.tokenizer.apply_chat_template(record["messages"], tokenize=False), False


def _names(files: Iterable[Path]) -> str:
    return ", ".join(map(str, files))
