"""Nested values as they are written to a file or shown in a table."""

import math
from typing import Any

DASH = "\N{EN DASH}"


def finite(value: Any) -> Any:
    """The same nested value with every NaN or infinity replaced by None, which is what JSON can hold.

    >>> finite({"a": [1.0, float("nan")], "b": "text"})
    {'a': [1.0, None], 'b': 'text'}
    """
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def settings(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted key, text) rows; `prefix` is put before every key.

    >>> settings({"budget": {"macs": 0.5}, "structures": ["channels", "blocks"], "finetune": None})
    [('budget.macs', '0.5'), ('structures', 'channels, blocks'), ('finetune', '–')]
    """
    if isinstance(value, dict) and value:
        start = f"{prefix}." if prefix else ""
        return [row for key, item in value.items() for row in settings(item, f"{start}{key}")]
    if isinstance(value, list | tuple):
        return [(prefix, ", ".join(str(item) for item in value) or DASH)]
    return [(prefix, DASH if value is None or value == {} else str(value))]


def short(value: float) -> float:
    """A number with four significant digits: an expectation is worth no more, and files agree to the last digit.

    >>> short(0.0123456)
    0.01235
    """
    return float(f"{value:.4g}")
