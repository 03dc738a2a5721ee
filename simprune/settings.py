"""Every option of a run, once: name, type, default, limits, one sentence, and the commands that it is for.

From these tables come the schema of recipes, the checks, the keyword arguments of the functions in `simprune.api`,
`simprune COMMAND --help` and `docs/reference.md`. What has options of its own is a group, such as `finetune`; what is
a registered part (`simprune.core.registry`) is a choice: a name, or a mapping with `name` and the part's options.
"""

# ruff: noqa: RUF009 - `option` makes a field

import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, Self, TypeVar, get_args, get_origin, get_type_hints

from simprune.core import registry
from simprune.core.names import did_you_mean
from simprune.core.registry import Choice
from simprune.core.types import has_type

F = TypeVar("F", bound=Callable[..., Any])
ALL = ("analyze", "plan", "compress", "frontier", "validate")
SCORED = ("analyze", "compress", "frontier")  # functions that score structures
PLANNED = ("plan", "compress", "frontier")
CONTROL = 3  # random plans of a frontier
BUILT = ("compress", "frontier")  # that make models
CHECKED = ("compress", "validate")
KINDS_OF_COST = Literal["macs", "params", "bytes", "latency"]


def option(
    default: Any,
    help: str,
    *,
    commands: Sequence[str] = (),
    kind: str = "",
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    example: str = "",
) -> Any:
    """One line of a table.

    Args:
        default: the value if nothing is said.
        help: one sentence.
        commands: functions of `simprune.api` that take it.
        kind: the registry's kind of which it is a choice, or of which its items are.
        least, most, above, below: limits of a number, or of the numbers in a list.
        example: what to type, for errors.
    """
    limits = {"least": least, "most": most, "above": above, "below": below}
    facts = {"help": help, "commands": tuple(commands), "kind": kind, "limits": limits, "example": example}
    if isinstance(default, type):
        return field(default_factory=default, metadata=facts)
    return field(default=default, metadata=facts)


class Options:
    """A table of options. Making one checks every value; lists become tuples, mappings become groups."""

    WHERE: ClassVar[str] = ""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for each in fields(self):  # pyright: ignore[reportArgumentType]
            if each.metadata:
                value = checked(f"{self.WHERE}{each.name}", getattr(self, each.name), hints[each.name], each.metadata)
                object.__setattr__(self, each.name, value)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """From a mapping of names to values; ValueError for a name that is no option, and as for wrong values."""
        known = [each.name for each in fields(cls)]  # pyright: ignore[reportArgumentType]
        for key in given:
            if key not in known:
                where = cls.WHERE.removesuffix(".") or "settings"
                raise ValueError(f"{where}: there is no option {key!r}; {did_you_mean(str(key), known)}")
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}


class Chosen(Options):
    """A choice with options that hold for every part of its kind; the part's own are in `options`."""

    KIND: ClassVar[str]
    name: str | None
    options: Mapping[str, Any]

    @classmethod
    def of(cls, given: Choice) -> Self:
        where = cls.WHERE.removesuffix(".")
        if not isinstance(given, str | Mapping):
            raise ValueError(f"{where}: expected a name, or a mapping with name and options; got {given!r}")
        mapping = {"name": given} if isinstance(given, str) else dict(given)
        common = {each.name for each in fields(cls) if each.name != "options"}  # pyright: ignore[reportArgumentType]
        own = {key: value for key, value in mapping.items() if key not in common}
        return cls(**{key: value for key, value in mapping.items() if key in common}, options=own)  # pyright: ignore

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name is None and not self.options:
            return
        where = self.WHERE.removesuffix(".")
        if not isinstance(self.name, str):
            raise ValueError(f"{where}: expected a name, or a mapping with name and options; got {self.choice!r}")
        part = _find(where, self.KIND, self.name)
        known = {*part.options, *(each.name for each in fields(self) if each.metadata)}  # pyright: ignore
        for key in () if part.open else self.options:
            if key not in known:
                raise ValueError(f"{where} {self.name} takes no option {key!r}; {did_you_mean(str(key), known)}")
        _read(where, self.KIND, self.choice)

    @property
    def choice(self) -> dict[str, Any]:
        """The part with its own options, as the registry reads it."""
        return {"name": self.name, **self.options}


@dataclass(frozen=True)
class Constraints(Options):
    """What a plan must leave alone, whoever makes it."""

    WHERE: ClassVar[str] = "planner."
    protect: Sequence[str] = option((), "names or patterns of layers and blocks that stay, or residual")
    round_to: int = option(1, "widths become multiples of it, or stay", least=1)
    min_width: int = option(1, "channels that a layer keeps at least", least=1)
    max_share: float = option(1.0, "the largest share of a layer's channels or heads that may go", above=0, most=1)


@dataclass(frozen=True)
class Planner(Chosen, Constraints):
    """What chooses, and what it must leave alone."""

    KIND: ClassVar[str] = "planner"
    name: str | None = "greedy"
    blocks: int | None = option(None, "how many blocks go, exactly; null: as many as the planner chooses", least=0)
    finalists: int = option(0, "plans that are tried on held-out inputs, the best of which wins; 0: none", least=0)
    batch_size: int | None = option(None, "inputs with which latency is measured; null: as many as an example", least=1)
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.finalists == 1:
            raise ValueError("planner.finalists: expected 0, or a whole number of at least 2; got 1")
        if self.finalists and self.blocks is not None:
            raise ValueError("planner.finalists differ in their number of blocks: give either finalists or blocks")

    @classmethod
    def named(cls, planner: "str | Mapping[str, Any] | Planner", options: Mapping[str, Any]) -> "Planner":
        """A planner by name or mapping, with more options."""
        if isinstance(planner, Planner):
            return planner
        if not isinstance(planner, str | Mapping):
            raise ValueError(f"planner: expected a name, or a mapping with name and options; got {planner!r}")
        choice: dict[str, Any] = {"name": planner} if isinstance(planner, str) else dict(planner)
        return cls.of(choice | dict(options))

    @property
    def constraints(self) -> dict[str, Any]:
        """What holds for every planner, where it is not the default."""
        common = [each for each in fields(self) if each.metadata]
        values = {each.name: (getattr(self, each.name), each.default) for each in common}
        return {key: value for key, (value, default) in values.items() if value != default}


@dataclass(frozen=True)
class Finetune(Options):
    """Training after the repair."""

    WHERE: ClassVar[str] = "finetune."
    epochs: int = option(3, "walks over the training batches; 0: no training", least=0)
    lr: float = option(0.01, "learning rate at the start of the cosine schedule", above=0)
    momentum: float = option(0.9, "of SGD", least=0, below=1)
    weight_decay: float = option(5e-4, "of SGD", least=0)
    distill: float = option(0.5, "share of the loss that follows the original; 0: labels alone", least=0, most=1)
    temperature: float = option(2.0, "by which the original's answers are softened", above=0)

    @classmethod
    def of(cls, given: Any) -> Self:
        """From a number of epochs, or a mapping."""
        if isinstance(given, int) and not isinstance(given, bool):
            return cls(epochs=given)
        if not isinstance(given, Mapping):
            raise ValueError(f"finetune: expected a number of epochs, or a mapping, such as epochs: 3; got {given!r}")
        return super().of(given)


@dataclass(frozen=True)
class Search(Options):
    """How the smallest model that passes is searched: budget smallest."""

    WHERE: ClassVar[str] = "search."
    kind: KINDS_OF_COST = option("macs", "the cost that is made smaller")
    tolerance: float = option(
        0.02, "how near the smallest share that passed and the next that failed have to be", least=1e-4, most=0.5
    )
    inconclusive: Literal["fail", "pass"] = option("fail", "what gates that cannot be decided count as")
    correction: Literal["none", "bonferroni"] = option(
        "none", "bonferroni: every check so strict that the choice as a whole has the gates' confidence"
    )


@dataclass(frozen=True)
class Analysis(Options):
    """What the page of `simprune analyze` shows."""

    WHERE: ClassVar[str] = "analysis."
    measures: Sequence[Any] = option((), "beside the recipe's measure", kind="measure", example="[gbs, svcca]")
    chance: int = option(20, "shuffles of the inputs, to see what chance gives; 0: none", least=0)
    bootstrap: int = option(50, "resamples for intervals; 0: none", least=0)
    inputs: int = option(384, "inputs from which chance and intervals are drawn", least=32)
    figures: bool = option(True, "whether SVG and PNG for papers are drawn")


def _correction() -> Any:
    return option(
        "holm",
        "whether all gates together have their confidence, or each on its own",
        commands=("compress", "validate"),
    )


@dataclass(frozen=True)
class Check(Chosen):
    """The gates of a recipe: a check set, or a list."""

    KIND: ClassVar[str] = "check"
    WHERE: ClassVar[str] = "check."
    name: str | None = None
    gates: Sequence[Mapping[str, Any]] | None = option(
        None, "gates in place of a check set's", example="[{measure: disagreement, limit: 0.05}]"
    )
    correction: Literal["holm", "none"] = _correction()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gates is not None and not self.gates:
            raise ValueError("check.gates is empty; give at least one gate, or a check set, such as check=default")


@dataclass(frozen=True)
class Pruned(Options):
    """In place of a bundle."""

    WHERE: ClassVar[str] = "pruned."
    function: str | None = option(None, "package.module:function that builds the pruned model")
    weights: str | None = option(None, "its weights, a .safetensors file")


@dataclass(frozen=True)
class Settings(Options):
    """Options of the functions in `simprune.api`."""

    budget: Any = option(
        None, "what to keep of macs, params, bytes, memory, latency, as {macs: 0.5, latency: 3ms}; or smallest",
        commands=("plan", "compress"),
    )  # fmt: skip
    budgets: Sequence[float] = option(
        (0.9, 0.7, 0.5, 0.3), "shares to keep", commands=["frontier"], above=0, most=1, example="[0.9, 0.5]"
    )
    kind: KINDS_OF_COST = option("macs", "the cost that the budgets are shares of", commands=["frontier"])
    measure: Any = option("cka_debiased", "similarity of what runs through blocks", commands=SCORED, kind="measure")
    structures: Sequence[str] = option(
        ("channels", "blocks"), "kinds of structures that may go", commands=SCORED, kind="structure",
        example="[channels, blocks]",
    )  # fmt: skip
    score: Choice = option("second_order", "how channels and heads are scored", commands=SCORED, kind="score")
    block_score: Choice = option("similarity", "how blocks are scored", commands=SCORED, kind="block_score")
    replace: Literal["identity", "linear", "mean"] = option(
        "identity", "what stands in for a removed block: its input, a fitted map of it, or a constant", commands=SCORED
    )
    trials: Sequence[float] = option(
        (), "shares of what blocks, channels and heads could save, removed on trial to scale expected damage by what "
        "that costs up to 1,024 calibration inputs", commands=SCORED, above=0, below=1, example="[0.2]",
    )  # fmt: skip
    planner: Planner = option(Planner, "what chooses, with its constraints", commands=PLANNED, kind="planner")
    reconstruct: str | Mapping[str, Any] = option(
        "least_squares", "repair without training, one for all or by pattern of layer names, the first that fits",
        commands=ALL[:-1], kind="repair",
    )  # fmt: skip
    finetune: Finetune | None = option(
        None,
        "training after the repair: epochs, or a mapping; needs training batches",
        commands=("compress", "frontier"),
    )
    gates: Any = option(
        None,
        "a check set's name, or gates; None: accuracy, changed answers, divergence",
        commands=("compress", "validate"),
    )
    correction: Literal["holm", "none"] = _correction()
    control: int = option(
        0, "random plans of the same cost that are built beside; tables show their mean", commands=BUILT, least=0
    )
    search: Search = option(Search, "how budget smallest is searched", commands=["compress"])
    seed: int = option(0, "of everything random", commands=ALL, least=0)

    @classmethod
    def of_command(cls, command: str, given: Mapping[str, Any]) -> Self:
        """The options of one function of `simprune.api`, checked.

        Raises:
            TypeError: for a name that the function does not take.
            ValueError: for a wrong value.
            KeyError: for an unknown part.

        >>> Settings.of_command("compress", {"seed": 3}).seed
        3
        >>> Settings.of_command("compress", {"control": "3"})
        Traceback (most recent call last):
        ValueError: control: expected a whole number of at least 0; got '3'
        """
        known = [each.name for each in table(command)]
        for key in given:
            if key not in known:
                raise TypeError(f"{command} takes no argument {key!r}; {did_you_mean(str(key), known)}")
        return cls(**given)


@dataclass(frozen=True)
class Recipe(Settings):
    """The keys of a recipe: options, and what only the command line needs. `check` holds gates and correction."""

    model: Any = option(None, "the network", kind="model", commands=ALL)
    data: Any = option(None, "batches for calibration, training and tests", kind="data", commands=ALL)
    check: Check = option(
        Check,
        "what the pruned model is checked by: a check set, or gates",
        kind="check",
        commands=("compress", "validate"),
    )
    device: str = option("auto", "where models run; auto: a GPU if there is one", commands=ALL)
    plan: str | None = option(None, "a plan file to apply instead of making one", commands=["compress"])
    bundle: str | None = option(None, "the folder to check", commands=["validate"])
    pruned: Pruned = option(Pruned, "in place of a bundle", commands=["validate"])
    junit: str | None = option(None, "a file to which JUnit XML is written", commands=["validate"])
    analysis: Analysis = option(Analysis, "what the page shows", commands=["analyze"])
    other: str | None = option(None, "a recipe or bundle to compare with, layer by layer", commands=["analyze"])
    resume: str | None = option(
        None, "the folder of an interrupted run to go on with", commands=("compress", "analyze")
    )
    objective: str | None = option(
        None, "what an optimising sweeper gets: accuracy, agreement, macs, params, bytes or latency_ms",
        commands=("plan", "compress"),
    )  # fmt: skip


LISTS = {"data": "data"}  # what `simprune list` calls the parts of a kind, where that is not its plural
PYTHON_ONLY = ("budgets", "kind", "gates", "correction")  # in a recipe these are budget: [...] and check
# The functions of `simprune.api` whose options a command reads.
READ_BY = {
    "analyze": {"analyze"},
    "plan": {"analyze", "plan", "frontier"},
    "compress": {"compress"},
    "validate": {"validate"},
}


def table(command: str) -> list[dataclasses.Field]:
    """The options that a function of `simprune.api` takes."""
    return [each for each in fields(Settings) if command in each.metadata["commands"]]


def recipe_table(command: str | None = None) -> list[dataclasses.Field]:
    """The keys of a recipe, all or those that a command reads."""
    shared = {each.name for each in fields(Settings)}

    def read(each: dataclasses.Field) -> bool:
        commands = set(each.metadata["commands"])
        return command is None or bool(commands & (READ_BY[command] if each.name in shared else {command}))

    return [each for each in fields(Recipe) if each.name not in PYTHON_ONLY and read(each)]


def group(each: dataclasses.Field, of: type = Recipe) -> type[Options] | None:
    """The table of an option that has options of its own."""
    return _nested(get_type_hints(of)[each.name])


def _nested(hint: Any) -> type[Options] | None:
    kinds = (hint, *get_args(hint))
    return next((part for part in kinds if isinstance(part, type) and issubclass(part, Options)), None)


def default_of(each: dataclasses.Field) -> Any:
    """The default as it is typed: the name of a choice, an empty mapping for a group."""
    if each.default is not dataclasses.MISSING:
        return each.default
    return getattr(each.default_factory, "name", {})


def checked(name: str, value: Any, hint: Any, facts: Mapping[str, Any]) -> Any:
    """A value as its option has it; ValueError or KeyError with what was expected, what came, and what to type."""
    kinds = [hint, *get_args(hint)]
    nested = _nested(hint)
    if nested is not None:
        if isinstance(value, nested) or (value is None and type(None) in kinds):
            return value
        if not isinstance(value, Mapping) and not issubclass(nested, Chosen | Finetune):
            raise ValueError(f"{name}: expected a mapping of {', '.join(_names(nested))}; got {value!r}")
        return nested.of(value)  # pyright: ignore[reportArgumentType]
    known = next((get_args(part) for part in kinds if get_origin(part) is Literal), None)
    if known is not None and value not in known:
        raise ValueError(f"{name}: unknown {value!r}; {did_you_mean(str(value), map(str, known))}")
    listed = any(get_origin(part) is Sequence for part in kinds)
    if listed and isinstance(value, list | tuple):
        value = tuple(value)
    items = value if listed and isinstance(value, tuple) else [value]
    if not has_type(value, hint) or not all(_within(each, facts["limits"]) for each in items):
        raise ValueError(f"{name}: expected {phrase(hint, facts)}; got {shown(value)}")
    kind = facts["kind"]
    if name == "structures" and not value:
        raise ValueError(f"structures is empty; name some of: {', '.join(registry.parts(kind))}")
    patterns = kind == "repair" and isinstance(value, Mapping) and "name" not in value
    for each in dict(value).values() if patterns else items:
        if kind and each is not None and not _is_part(each):
            _read(name, kind, each)
    return value


def _is_part(value: Any) -> bool:
    """Whether it is no choice but the object itself, as a measure with its hyperparameters."""
    return hasattr(value, "compare") and hasattr(value, "prepare")


def _find(name: str, kind: str, part: str) -> registry.Part:
    try:
        return registry.find(kind, part)
    except KeyError as error:
        text = str(error.args[0])
        raise KeyError(text if name in text else f"{name}: {text}") from None


def _read(name: str, kind: str, choice: Any) -> None:
    try:
        registry.read(kind, choice)
    except (KeyError, ValueError) as error:
        text = str(error.args[0])
        raise type(error)(text if name.replace("_", " ") in text else f"{name}: {text}") from None


def _within(value: Any, limits: Mapping[str, float | None]) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    least, most, above, below = (limits[key] for key in ("least", "most", "above", "below"))
    return (
        (least is None or value >= least)
        and (most is None or value <= most)
        and (above is None or value > above)
        and (below is None or value < below)
        and value == value
    )


def phrase(hint: Any, facts: Mapping[str, Any]) -> str:
    """What an option expects, in words.

    >>> phrase(float, {"limits": {"least": 0, "most": None, "above": None, "below": 1}, "example": ""})
    'a number in [0, 1)'
    """
    kinds = [hint] if get_origin(hint) in (Sequence, Mapping, Literal) else list(get_args(hint) or [hint])
    words = [_word(part, facts) for part in kinds if part is not type(None)]
    if type(None) in kinds:
        words.append("null")
    return " or ".join(dict.fromkeys(words)) + (f", such as {facts['example']}" if facts["example"] else "")


def _word(hint: Any, facts: Mapping[str, Any]) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    if get_origin(hint) is Sequence:
        (inner,) = get_args(hint)
        what = {str: "names", float: f"numbers{_limits(facts['limits'])}"}.get(inner, "")
        return f"a list of {what}" if what else "a list"
    if get_origin(hint) is Mapping:
        return "a mapping"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    limits = _limits(facts["limits"]) if hint in (int, float) else ""
    return words.get(hint, "a value") + limits


def _limits(limits: Mapping[str, float | None]) -> str:
    least, most, above, below = (limits[key] for key in ("least", "most", "above", "below"))
    low, high = least if least is not None else above, most if most is not None else below
    if low is not None and high is not None:
        return f" in {'[' if least is not None else '('}{low:g}, {high:g}{']' if most is not None else ')'}"
    if low is not None:
        return f" of at least {low:g}" if least is not None else f" above {low:g}"
    return ""


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"a {type(value).__name__}"


def _names(table: type[Options]) -> list[str]:
    return [each.name for each in fields(table)]  # pyright: ignore[reportArgumentType]


def describe(each: dataclasses.Field) -> str:
    """An option's sentence, and the list to choose from."""
    kind = each.metadata["kind"]
    return each.metadata["help"] + (f" (`simprune list {LISTS.get(kind, kind + 's')}`)" if kind else "")


def takes_options(of: str | type[Options], **defaults: Any) -> Callable[[F], F]:
    """A decorator for a function whose `**options` are those of a command or table: signature and docstring say so.

    The line `{options}` of its docstring becomes one line per option; `defaults` differ from the table's.
    """
    owner = Settings if isinstance(of, str) else of
    listed = table(of) if isinstance(of, str) else list(fields(of))  # pyright: ignore[reportArgumentType]

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        hints = get_type_hints(owner)
        own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        taken = [each for each in listed if each.name not in signature.parameters]
        added = [
            inspect.Parameter(
                each.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=defaults.get(each.name, default_of(each)),
                annotation=hints[each.name],
            )
            for each in taken
        ]
        function.__signature__ = signature.replace(parameters=[*own, *added])  # pyright: ignore
        lines = [f"        {each.name}: {describe(each)}." for each in taken]
        function.__doc__ = (function.__doc__ or "").replace("        {options}", "\n".join(_wrapped(lines)))
        return function

    return decorate


def _wrapped(lines: Sequence[str]) -> Iterator[str]:
    for line in lines:
        yield from textwrap.wrap(line, 120, subsequent_indent=" " * 12, break_long_words=False, break_on_hyphens=False)
