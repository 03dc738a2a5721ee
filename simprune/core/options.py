"""Tables of options: one line per option says its default, its limits and one sentence; the rest follows from it.

A table is a frozen dataclass of `option` fields below `Options`; making one checks every value. A choice of a
registered part (`simprune.core.registry`), with options that hold for every part of its kind, is a `Chosen`.
"""

import dataclasses
import inspect
import operator
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, field, fields
from typing import Any, ClassVar, Literal, Self, TypeVar, get_args, get_origin, get_type_hints

from simprune.core import registry
from simprune.core.names import did_you_mean
from simprune.core.registry import Choice
from simprune.core.types import has_type

F = TypeVar("F", bound=Callable[..., Any])
LIMITS = {"least": operator.ge, "most": operator.le, "above": operator.gt, "below": operator.lt}
LISTS = {"data": "data"}  # what `simprune list` calls the parts of a kind, where that is not its plural


def option(
    default: Any,
    help: str,
    *,
    commands: Sequence[str] = (),
    kind: str = "",
    example: str = "",
    **limits: float,
) -> Any:
    """One line of a table.

    Args:
        default: the value of an option that is left out; a class, such as a group of options, is called for the value.
        help: one sentence.
        commands: functions of `simprune.api` that take it.
        kind: the registry's kind of which it is a choice, or of which its items are.
        example: what to type, for errors.
        limits: of a number, or of the numbers in a list, by the names of `LIMITS`: least, most, above, below.

    Raises:
        KeyError: for a limit of another name.
    """
    for limit in limits:
        LIMITS[limit]
    facts = {"help": help, "commands": tuple(commands), "kind": kind, "limits": limits, "example": example}
    if isinstance(default, type):
        return field(default_factory=default, metadata=facts)
    return field(default=default, metadata=facts)


class Options:
    """A table of options. Making one checks every value; lists become tuples, mappings become groups."""

    WHERE: ClassVar[str] = "settings"  # how errors call the table

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        prefix = "" if self.WHERE == Options.WHERE else f"{self.WHERE}."
        for entry in listed(type(self)):
            value = checked(f"{prefix}{entry.name}", getattr(self, entry.name), hints[entry.name], entry.metadata)
            object.__setattr__(self, entry.name, value)

    @classmethod
    def of(cls, values: Any) -> Self:
        """From a mapping of names to values; ValueError for a name that is no option, and for wrong values."""
        known = [entry.name for entry in fields(cls)]  # pyright: ignore[reportArgumentType]
        if not isinstance(values, Mapping):
            raise ValueError(f"{cls.WHERE}: expected a mapping of {', '.join(known)}; got {values!r}")
        for key in values:
            if key not in known:
                raise ValueError(f"{cls.WHERE}: there is no option {key!r}; {did_you_mean(str(key), known)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}


class Chosen(Options):
    """A choice of a part: options that hold for every part of its kind, and the part's own in `options`."""

    KIND: ClassVar[str]
    name: str | None
    options: Mapping[str, Any]

    @classmethod
    def of(cls, values: Choice) -> Self:
        """From a name, or a mapping with `name` and options."""
        if not isinstance(values, str | Mapping):
            raise ValueError(f"{cls.WHERE}: expected a name, or a mapping with name and options; got {values!r}")
        mapping = {"name": values} if isinstance(values, str) else dict(values)
        common = {"name", *(entry.name for entry in listed(cls))}
        own = {key: value for key, value in mapping.items() if key not in common}
        return cls(**{key: value for key, value in mapping.items() if key in common}, options=own)  # pyright: ignore

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name is None and not self.options:
            return
        if not isinstance(self.name, str):
            raise ValueError(f"{self.WHERE}: expected a name, or a mapping with name and options; got {self.choice!r}")
        part = _in_words_of(self.WHERE, registry.find, self.KIND, self.name)
        known = {*part.options, *(entry.name for entry in listed(type(self)))}
        for key in () if part.open else self.options:
            if key not in known:
                raise ValueError(f"{self.WHERE} {self.name} takes no option {key!r}; {did_you_mean(str(key), known)}")
        _in_words_of(self.WHERE, registry.read, self.KIND, self.choice)

    @property
    def choice(self) -> dict[str, Any]:
        """The part with its own options, as the registry reads it."""
        return {"name": self.name, **self.options}


def listed(table: type[Options], command: str = "") -> list[Field]:
    """The options of a table, all or those that a function of `simprune.api` takes."""
    options = [entry for entry in fields(table) if entry.metadata]  # pyright: ignore[reportArgumentType]
    return [entry for entry in options if not command or command in entry.metadata["commands"]]


def nested(hint: Any) -> type[Options] | None:
    """The table that an annotation names, if it names one."""
    kinds = (hint, *get_args(hint))
    return next((part for part in kinds if isinstance(part, type) and issubclass(part, Options)), None)


def default_of(entry: Field) -> Any:
    """The default as it is typed: the name of a choice, an empty mapping for a group."""
    if entry.default is not dataclasses.MISSING:
        return entry.default
    return getattr(entry.default_factory, "name", {})


def checked(name: str, value: Any, hint: Any, facts: Mapping[str, Any]) -> Any:
    """A value as its option has it; ValueError or KeyError with what was expected, what came, and what to type."""
    kinds = [hint, *get_args(hint)]
    group = nested(hint)
    if group is not None:
        fits = isinstance(value, group) or (value is None and type(None) in kinds)
        return value if fits else group.of(value)
    known = next((get_args(part) for part in kinds if get_origin(part) is Literal), None)
    if known is not None and value not in known:
        raise ValueError(f"{name}: unknown {value!r}; {did_you_mean(str(value), map(str, known))}")
    several = any(get_origin(part) is Sequence for part in kinds)
    if several and isinstance(value, list | tuple):
        value = tuple(value)
    items = value if several and isinstance(value, tuple) else [value]
    if not has_type(value, hint) or not all(_within(item, facts["limits"]) for item in items):
        raise ValueError(f"{name}: expected {phrase(hint, facts)}; got {shown(value)}")
    kind = facts["kind"]
    if name == "structures" and not value:
        raise ValueError(f"structures is empty; name some of: {', '.join(registry.parts(kind))}")
    patterns = kind == "repair" and isinstance(value, Mapping) and "name" not in value
    for item in dict(value).values() if patterns else items:
        is_part = hasattr(item, "compare") and hasattr(item, "prepare")  # a measure with its hyperparameters
        if kind and item is not None and not is_part:
            _in_words_of(name, registry.read, kind, item)
    return value


def _in_words_of(name: str, look_up: Callable[..., Any], *choice: Any) -> Any:
    """What the registry says of a choice; its errors begin with the option's name."""
    try:
        return look_up(*choice)
    except (KeyError, ValueError) as error:
        text = str(error.args[0])
        raise type(error)(text if name.replace("_", " ") in text else f"{name}: {text}") from None


def _within(value: Any, limits: Mapping[str, float]) -> bool:
    """Whether a number is within limits and is not NaN; true for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    return value == value and all(LIMITS[name](value, limit) for name, limit in limits.items())


def phrase(hint: Any, facts: Mapping[str, Any]) -> str:
    """What an option expects, in words.

    >>> phrase(float, {"limits": {"least": 0, "below": 1}, "example": ""})
    'a number in [0, 1)'
    """
    kinds = [hint] if get_origin(hint) in (Sequence, Mapping, Literal) else list(get_args(hint) or [hint])
    words = [_word(part, facts["limits"]) for part in kinds if part is not type(None)]
    if type(None) in kinds:
        words.append("null")
    return " or ".join(dict.fromkeys(words)) + (f", such as {facts['example']}" if facts["example"] else "")


def _word(hint: Any, limits: Mapping[str, float]) -> str:
    """A type in words, with the limits where it is a number."""
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    if get_origin(hint) is Sequence:
        items = {str: " of names", float: f" of numbers{_limits(limits)}"}
        return "a list" + items.get(get_args(hint)[0], "")
    if get_origin(hint) is Mapping:
        return "a mapping"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return words.get(hint, "a value") + (_limits(limits) if hint in (int, float) else "")


def _limits(limits: Mapping[str, float]) -> str:
    """Limits in words; an upper limit alone has none."""
    low, high = limits.get("least", limits.get("above")), limits.get("most", limits.get("below"))
    if low is None:
        return ""
    if high is None:
        return f" of at least {low:g}" if "least" in limits else f" above {low:g}"
    return f" in {'[' if 'least' in limits else '('}{low:g}, {high:g}{']' if 'most' in limits else ')'}"


def shown(value: Any) -> str:
    """A value as errors show it: in full, or where that is long its type."""
    text = repr(value)
    return text if len(text) <= 80 else f"a {type(value).__name__}"


def describe(entry: Field) -> str:
    """An option's sentence, and the list to choose from."""
    kind = entry.metadata["kind"]
    return entry.metadata["help"] + (f" (`simprune list {LISTS.get(kind, kind + 's')}`)" if kind else "")


def takes_options(table: type[Options], command: str = "", **defaults: Any) -> Callable[[F], F]:
    """A decorator for a function whose `**options` are those of a table: its signature and docstring say so.

    Args:
        table: where the options stand.
        command: only those that this function of `simprune.api` takes.
        defaults: where they differ from the table's.

    The line `{options}` of the function's docstring becomes one line per option.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        hints = get_type_hints(table)
        parameters = [entry for entry in signature.parameters.values() if entry.kind is not entry.VAR_KEYWORD]
        wrap = textwrap.TextWrapper(120, subsequent_indent=" " * 12, break_long_words=False, break_on_hyphens=False)
        lines = []
        for entry in listed(table, command):
            if entry.name not in signature.parameters:
                parameter = inspect.Parameter(entry.name, inspect.Parameter.KEYWORD_ONLY, annotation=hints[entry.name])
                parameters.append(parameter.replace(default=defaults.get(entry.name, default_of(entry))))
                lines.append(wrap.fill(f"        {entry.name}: {describe(entry)}."))
        function.__signature__ = signature.replace(parameters=parameters)  # pyright: ignore
        function.__doc__ = (function.__doc__ or "").replace("        {options}", "\n".join(lines))
        return function

    return decorate
