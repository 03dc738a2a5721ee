"""What is wrong with the options of a study is said in one line, before any work."""

from collections.abc import Mapping
from typing import Any

from simprune.core.names import did_you_mean
from simprune.core.registry import Part, parts
from simprune.studies.images import Images
from simprune.studies.networks import ARCHITECTURES

LEAST = 8  # pixels of a side that the small networks take


def check_study_options(part: Part, options: Mapping[str, Any], own_models: bool) -> None:
    """Check what types do not say: the least values that a study registers as `least`, architectures, names of parts.

    Args:
        part: the study.
        options: all of them, with defaults.
        own_models: whether the user's networks take the place of trained ones.

    Raises:
        ValueError: for a number below the least one, or no or an unknown architecture.
    """
    for name, least in part.facts.get("least", {}).items():
        values = options[name] if isinstance(options[name], list | tuple) else [options[name]]
        if not values or any(value < least for value in values):
            raise ValueError(f"study {part.name}: {name} must be at least {least}; got {options[name]}")
    if not own_models:
        for name in {"architecture", "architectures"} & {*options}:
            values = [options[name]] if name == "architecture" else options[name]
            _check_names(f"study {part.name}: {name}", values, ARCHITECTURES)


def check_size(images: Images) -> None:
    """Raise ValueError for images that are too small for the networks that studies train."""
    if images.side < LEAST:
        raise ValueError(
            f"data: small networks take images of at least {LEAST} pixels a side; got {images.side}: add size={LEAST}"
        )


def check_parts(kind: str, names: Any) -> None:
    """Raise ValueError for a name that no part of a kind has.

    >>> check_parts("measure", ["cka", "gsb"])
    Traceback (most recent call last):
    ValueError: measure: no 'gsb'; did you mean 'gbs'?
    """
    if names:
        _check_names(kind.replace("_", " "), names, parts(kind))


def _check_names(what: str, names: Any, known: Any) -> None:
    if not names:
        raise ValueError(f"{what}: expected some of {', '.join(known)}; got none")
    for name in names:
        if name not in known:
            raise ValueError(f"{what}: no {name!r}; {did_you_mean(str(name), known)}")
