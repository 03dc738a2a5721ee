"""The registry: every part that a run can consist of, by kind and name, and how a choice of a part is read.

A part is a function or a dataclass in one file, registered where it is defined:

    @register("score", "taylor", source="arXiv:1906.10771")
    def taylor(network, calibration, groups, *, order: int = 1): ...

The files of simprune's own folders are imported when the parts of a kind are first asked for. Other packages name
modules to import by entry points of the group `simprune`. Options are the keyword-only parameters of a function, or the
fields of a dataclass.
"""

import dataclasses
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import entry_points
from typing import Any, TypeVar

from simprune.core.names import did_you_mean
from simprune.core.types import has_type, type_name

ENTRY_POINTS = "simprune"  # the group of entry points by which other packages name their modules
FOLDERS = {
    "measure": ("simprune.measures",),
    "functional": ("simprune.functional", "simprune.checks"),
    "score": ("simprune.scores.channels",),
    "block_score": ("simprune.scores.blocks", "simprune.tune"),
    "structure": ("simprune.structures",),
    "planner": ("simprune.planners",),
    "repair": ("simprune.repair",),
    "model": ("simprune.sources",),
    "data": ("simprune.sources",),
    "corruption": ("simprune.checks",),
    "check": ("simprune.checks",),
    "format": ("simprune.formats",),
    "study": ("simprune.studies",),
}
WORDS = {"functional": "functional measure", "block_score": "block score", "check": "check set", "data": "data source"}
T = TypeVar("T")

Choice = str | Mapping[str, Any]  # a name, or a mapping with `name` and options


@dataclass(frozen=True)
class Part:
    """One part: its kind and name, the function or class that it is, its source, and facts that its kind asks for."""

    kind: str
    name: str
    make: Callable[..., Any]
    source: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """The first sentence of its docstring, on one line."""
        return " ".join((self.make.__doc__ or "").strip().partition("\n\n")[0].split())

    @property
    def options(self) -> dict[str, Any]:
        """Defaults of its options by name; `dataclasses.MISSING` for an option without a default."""
        if dataclasses.is_dataclass(self.make):
            return {option.name: _default(option) for option in dataclasses.fields(self.make) if option.init}
        parameters = inspect.signature(self.make).parameters.values()
        return {
            option.name: dataclasses.MISSING if option.default is option.empty else option.default
            for option in parameters
            if option.kind is option.KEYWORD_ONLY
        }

    @property
    def open(self) -> bool:
        """Whether it takes options of any name, which it hands on."""
        parameters = inspect.signature(self.make).parameters.values()
        return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


_parts: dict[str, dict[str, Part]] = {kind: {} for kind in FOLDERS}


def register(kind: str, name: str, *, source: str = "", **facts: Any) -> Callable[[T], T]:
    """A decorator that adds a function or class as the part `name` of a kind, and returns it unchanged.

    Args:
        kind: one of `FOLDERS`; "source" with `gives="model"` or `gives="data"` for these two.
        name: how recipes and arguments call it; unique within its kind.
        source: the paper or formula.
        facts: whatever else the kind's users ask for.

    Raises:
        ValueError: for an unknown kind, or a name that something else has taken.
    """
    if kind == "source":
        if facts.get("gives") not in ("model", "data"):
            raise ValueError(f"source {name}: expected gives='model' or gives='data'; got {facts.get('gives')!r}")
        kind = str(facts.pop("gives"))
    if kind not in _parts:
        raise ValueError(f"no kind of part {kind!r}; {did_you_mean(kind, _parts)}")

    def add(part: T) -> T:
        known = _parts[kind].get(name)
        if known is not None and _origin(known.make) != _origin(part):  # not a mere reload of the same file
            raise ValueError(f"{_word(kind)} id {name!r} is taken by {_origin(known.make)}")
        _parts[kind][name] = Part(kind, name, part, source, facts)  # pyright: ignore[reportArgumentType]
        return part

    return add


def parts(kind: str) -> dict[str, Part]:
    """All parts of a kind by name, sorted; those of simprune's folders and of other packages."""
    _import_parts(kind)
    return dict(sorted(_parts[kind].items()))


def find(kind: str, name: str) -> Part:
    """A part by name.

    Raises:
        KeyError: for an unknown name; the message says what was probably meant.
    """
    known = parts(kind)
    if name not in known:
        raise KeyError(f"no {_word(kind)} named {name!r}; {did_you_mean(str(name), known)}")
    return known[name]


def read(kind: str, choice: Choice) -> tuple[Part, dict[str, Any]]:
    """The part that a choice names, and its options, checked.

    Args:
        kind: of the part.
        choice: a name, or a mapping with `name` and options.

    Raises:
        KeyError: for an unknown name.
        ValueError: for a choice that is neither, an option that the part does not take, a missing option, or a value
            of another type.

    >>> part, options = read("planner", {"name": "threshold", "threshold": 0.9})
    >>> part.name, options
    ('threshold', {'threshold': 0.9})
    """
    mapping = {"name": choice} if isinstance(choice, str) else choice
    if not isinstance(mapping, Mapping) or not isinstance(mapping.get("name"), str):
        raise ValueError(f"{kind}: expected a name, or a mapping with name and options; got {choice!r}")
    part, options = find(kind, mapping["name"]), {key: value for key, value in mapping.items() if key != "name"}
    check_options(part, options)
    return part, options


def check_options(part: Part, options: Mapping[str, Any]) -> None:
    """Raise ValueError for an option that a part does not take, for a missing one, and for a value of another type."""
    known, word = part.options, f"{_word(part.kind)} {part.name}"
    for key in options:
        if key not in known and not part.open:
            raise ValueError(f"{word} takes no option {key!r}; {did_you_mean(key, known)}")
    missing = [key for key, default in known.items() if default is dataclasses.MISSING and key not in options]
    if missing:
        raise ValueError(f"{word} needs {', '.join(missing)}; its options: {', '.join(known) or 'none'}")
    hints = typing.get_type_hints(part.make)
    for key, value in options.items():
        if key in hints and not has_type(value, hints[key]):
            raise ValueError(f"{word}: {key} must be {type_name(hints[key])}, got {value!r}")


def bound(kind: str, choice: Choice, **context: Any) -> Callable[..., Any]:
    """The function of a choice with its options filled in; `context` fills in options that the choice leaves out.

    `context` holds what every part of a run shares, such as its seed; a part that does not take it does not get it.
    """
    part, options = read(kind, choice)
    shared = {key: value for key, value in context.items() if key in part.options and key not in options}
    return partial(part.make, **shared, **options)


@cache
def _import_parts(kind: str) -> None:
    """Import every file of a kind's folders, and what other packages name, so that their parts register themselves."""
    for package in FOLDERS[kind]:
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            if not module.ispkg:
                importlib.import_module(f"{package}.{module.name}")
    for entry_point in entry_points(group=ENTRY_POINTS):
        entry_point.load()


def _default(option: dataclasses.Field) -> Any:
    return option.default if option.default_factory is dataclasses.MISSING else option.default_factory()


def _origin(part: Any) -> str:
    """The module in which a function or class is defined, and its name there."""
    return f"{part.__module__}.{part.__qualname__}"


def _word(kind: str) -> str:
    """What error messages call a kind."""
    return WORDS.get(kind, kind)
