"""Whether a value fits an annotation, and the annotation in words."""

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal


def has_type(value: Any, hint: Any) -> bool:
    """Whether a value fits an annotation: plain types, unions, Literal, and lists, sequences and mappings of these.

    A whole number is a float; a bool is neither an int nor a float; a str is no sequence. Annotations of other shapes
    are not judged.

    >>> has_type(1, float), has_type(True, int), has_type(None, int | None), has_type(["a"], Sequence[str])
    (True, False, True, True)
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(has_type(value, item) for item in inner)
    if origin is Literal:
        return any(value == item and type(value) is type(item) for item in inner)
    if hint is Any or not isinstance(origin or hint, type):
        return True
    if origin is not None:
        if isinstance(value, str) and issubclass(origin, Sequence):
            return False
        if issubclass(origin, tuple) and isinstance(value, list):  # as read from a file
            return all(has_type(item, inner[0]) for item in value)
        if not isinstance(value, origin):
            return False
        if isinstance(value, Mapping) and len(inner) == 2:
            return all(has_type(key, inner[0]) and has_type(item, inner[1]) for key, item in value.items())
        return not isinstance(value, Sequence) or not inner or all(has_type(item, inner[0]) for item in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))


def type_name(hint: Any) -> str:
    """An annotation as a person would write it.

    >>> type_name(int), type_name(Literal["mean", "sum"]), type_name(Sequence[str])
    ('int', "'mean' or 'sum'", 'a list of str')
    """
    if typing.get_origin(hint) in (Sequence, list):
        return f"a list of {type_name(typing.get_args(hint)[0])}"
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    return getattr(hint, "__name__", str(hint)) if isinstance(hint, type) else str(hint)
