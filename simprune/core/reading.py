"""Texts from elsewhere, read within limits: UTF-8, and YAML that is neither deep nor huge, with few aliases."""

import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

DEPTH = 64  # mappings and lists within each other
NODES = 100_000  # values of a YAML text, and values that its aliases repeat
BYTES = 64 << 20  # of a plan; a plan of 70 billion parameters has some 16 MiB


def read_text(path: str | os.PathLike[str], most: int | None = BYTES) -> str:
    """The text of a file.

    Args:
        path: of the file.
        most: bytes that the file may have; None: any number.

    Raises:
        FileNotFoundError: for a missing file.
        ValueError: in one line, for what is no file, what is not UTF-8, and for more bytes.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "plan.yaml").write_bytes(bytes([255]))
    ...     read_text(Path(folder, "plan.yaml"))
    Traceback (most recent call last):
    ValueError: ...plan.yaml: expected a text in UTF-8; got the byte 0xff at 0; save the file as UTF-8
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no file {path}")
    if not path.is_file():
        raise ValueError(f"{path}: expected a file; got a folder or a device")
    with path.open("rb") as file:
        content = file.read() if most is None else file.read(most + 1)
    if most is not None and len(content) > most:
        raise ValueError(f"{path}: expected at most {most:,} bytes; got more")
    return decoded(content, str(path))


def decoded(content: bytes, what: str) -> str:
    """Bytes as text; ValueError, which begins with `what`, for bytes that are not UTF-8.

    >>> decoded(b"edits: []", "plan")
    'edits: []'
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        wrong = f"the byte {content[error.start]:#04x} at {error.start}"
        raise ValueError(f"{what}: expected a text in UTF-8; got {wrong}; save the file as UTF-8") from None


def read_yaml(text: str, what: str, nodes: int = NODES) -> Any:
    """The plain values that a YAML text describes.

    Args:
        text: of the file.
        what: it is, as errors begin.
        nodes: values that it may have; those that aliases repeat are `NODES` at most.

    Raises:
        ValueError: in one line, for what is no YAML, nests deeper than `DEPTH`, has more than `nodes` values, names a
            type by a tag, or says one key twice.

    >>> read_yaml("a: [1, 2]", "recipe")
    {'a': [1, 2]}
    >>> read_yaml("a: 1\\na: 2", "recipe")
    Traceback (most recent call last):
    ValueError: recipe: the key 'a' stands there twice, in lines 1 and 2; write it once
    """
    try:
        _check_size(text, nodes)
        return yaml.load(text, Loader=_Loader)
    except _Refused as refused:
        raise ValueError(f"{what}: {refused}") from None
    except yaml.MarkedYAMLError as error:
        where = f"{what}, line {error.problem_mark.line + 1}" if error.problem_mark else what
        raise ValueError(f"{where}: not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, OverflowError, TypeError) as error:  # such as a date with 99 months
        raise ValueError(f"{what}: not valid YAML: {' '.join(str(error).split())}") from None


def _check_size(text: str, most: int) -> None:
    """Raise _Refused for a text whose values, with those of its aliases, are too many or nest too deep.

    The parser hands out events one after the other, so that a hostile text costs no more than its length.
    """
    sizes: dict[str, int] = {}  # of anchors, by name: values below and with them
    heights: dict[str, int] = {}
    open_: list[tuple[str | None, int, int]] = []  # anchor, values before it, deepest level within
    count = repeated = deepest = 0
    for event in yaml.parse(text, Loader=_Parser):
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _, _ in open_):
                raise _Refused(f"the alias *{event.anchor} stands inside of what it repeats; write it out")
            count += sizes.get(event.anchor, 1)
            repeated += sizes.get(event.anchor, 1)
            deepest = max(deepest, len(open_) + heights.get(event.anchor, 1))
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            deepest = max(deepest, len(open_) + 1)
            if event.anchor:
                sizes[event.anchor], heights[event.anchor] = 1, 1
        elif isinstance(event, yaml.CollectionStartEvent):
            open_.append((event.anchor, count, deepest))
            count += 1
            deepest = len(open_)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before, outside = open_.pop()
            if anchor:
                sizes[anchor], heights[anchor] = count - before, deepest - len(open_)
            deepest = max(deepest, outside)
        if deepest > DEPTH:
            raise _Refused(f"expected at most {DEPTH} levels of mappings and lists; got more")
        if repeated > NODES:
            raise _Refused(f"expected aliases that repeat at most {NODES:,} values; got more")
        if count - repeated > most:
            raise _Refused(f"expected at most {most:,} values; got more")


class _Refused(Exception):
    """Valid YAML that is beyond the limits, or says a key twice."""


_Parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a tenth of the time of the parser in Python


class _Loader(_Parser):
    """The safe loader without duplicate keys; later ones would hide earlier ones."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                line = key.start_mark.line + 1
                if key.value in lines:
                    lines_of = f"lines {lines[key.value]} and {line}"
                    raise _Refused(f"the key {key.value!r} stands there twice, in {lines_of}; write it once")
                lines[key.value] = line
        return super().construct_mapping(node, deep)
