"""Measures as recipes name them, for options, tables and keys of steps."""

from collections.abc import Mapping
from typing import Any

import simprune as sp

Choice = str | Mapping[str, Any]


def measure_of(choice: Choice) -> Any:
    """The measure of a choice: a name, or a mapping with `name` and hyperparameters."""
    options = {} if isinstance(choice, str) else {key: value for key, value in choice.items() if key != "name"}
    return sp.measures.get(choice if isinstance(choice, str) else choice["name"], **options)


def label_of(choice: Choice) -> str:
    """What tables call a choice.

    >>> label_of("cka"), label_of({"name": "gbs", "k": 5, "center": True})
    ('cka', 'gbs k=5 center=True')
    """
    if isinstance(choice, str):
        return choice
    return " ".join([str(choice["name"]), *(f"{key}={value}" for key, value in choice.items() if key != "name")])
