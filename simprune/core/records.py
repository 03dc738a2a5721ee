"""Records of local files of text: lines of JSON, JSON, parquet by way of `datasets`, and plain text in documents."""

import json
from collections.abc import Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from simprune.core.names import did_you_mean
from simprune.core.reading import read_text

KINDS = ("blocks", "lines", "files")  # what a document is in plain text
SUFFIXES = (".txt", ".jsonl", ".json", ".parquet")


def files_of(paths: str | Sequence[str]) -> list[Path]:
    """The files of one or several paths or patterns such as `texts/*.jsonl`, in order, every one once.

    Args:
        paths: of files; `~` is the home folder.

    Raises:
        FileNotFoundError: for a missing file, and for a pattern that fits no file.
        ValueError: for a file of another type than `SUFFIXES`, and for no path.
    """
    files: list[Path] = []
    for path in [paths] if isinstance(paths, str) else paths:
        full = str(Path(path).expanduser())
        matches = sorted(glob(full)) if has_magic(full) and not Path(full).exists() else [full]
        if not matches or not all(Path(match).is_file() for match in matches):
            raise FileNotFoundError(f"no file {path}")
        files += [Path(match) for match in matches]
    for file in files:
        if file.suffix not in SUFFIXES:
            raise ValueError(f"{file}: expected a file of type {', '.join(SUFFIXES)}; got {file.suffix or 'no type'!r}")
    if not files:
        raise ValueError("no file is named; give at least one path")
    return list(dict.fromkeys(files))


def records(file: Path, documents: str = "blocks") -> Iterator[tuple[str, Any]]:
    """Where every record of a file stands, and the record: a text, or what JSON or parquet hold.

    Args:
        file: of one of `SUFFIXES`.
        documents: what a document is in plain text: "blocks" of lines with an empty line between them, "lines", or
            "files".

    Raises:
        ValueError: for an unknown kind of documents, for what is not UTF-8 or not JSON, and for parquet without
            `datasets`.
    """
    if documents not in KINDS:
        raise ValueError(f"documents: unknown {documents!r}; {did_you_mean(documents, KINDS)}")
    if file.suffix == ".parquet":
        yield from _parquet(file)
        return
    content = read_text(file, most=None)
    if file.suffix == ".txt":
        for number, text in enumerate(_plain(content, documents), start=1):
            yield f"{file}, document {number}", text
    elif file.suffix == ".json":
        values = _parsed(content, str(file))
        if not isinstance(values, list):
            raise ValueError(f"{file}: expected a list of records; got {type(values).__name__}")
        yield from ((f"{file}, record {number}", value) for number, value in enumerate(values, start=1))
    else:
        for number, line in enumerate(_lines(content), start=1):
            if line.strip():
                yield f"{file}, line {number}", _parsed(line, f"{file}, line {number}")


def _lines(content: str) -> list[str]:
    """The lines of a text; other characters at which `splitlines` would cut, such as U+2028, belong to a line."""
    return content.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _plain(content: str, kind: str) -> Iterator[str]:
    """The documents of a text that are not empty."""
    if kind == "files":
        documents = [content]
    elif kind == "lines":
        documents = _lines(content)
    else:
        lines = [line if line.strip() else "" for line in _lines(content)]
        documents = "\n".join(lines).split("\n\n")
    for document in documents:
        if document.strip():
            yield document.strip("\n")


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also for a number of thousands of digits
        raise ValueError(f"{where} is not JSON: {error}") from None


def _parquet(file: Path) -> Iterator[tuple[str, Any]]:
    try:
        from datasets import load_dataset  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(f"{file}: parquet needs the package datasets; pip install datasets") from None
    rows = load_dataset("parquet", data_files=str(file), split="train", streaming=True)
    yield from ((f"{file}, row {number}", dict(row)) for number, row in enumerate(rows, start=1))
