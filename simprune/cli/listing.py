"""`simprune list`: the measures, recipes and all other parts to choose from."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from simprune.cli import console
from simprune.cli.console import table
from simprune.cli.folders import recipes
from simprune.cli.help import LISTED
from simprune.core.names import did_you_mean
from simprune.core.registry import Part, parts
from simprune.functional import FORMS
from simprune.measures._base import INVARIANCES
from simprune.settings import recipe_table


def show(args: Sequence[str]) -> None:
    """Print one list, or all of them; ValueError for an unknown one."""
    for name in args:
        if name not in LISTED:
            raise ValueError(f"no list {name!r}; {did_you_mean(name, LISTED)}")
    console.show(*map(_list, args or LISTED))


def _list(name: str) -> Table:
    if name == "recipes":
        return table("recipes (recipe=NAME)", ["name", "what"], recipes().items())
    kind = LISTED[name]
    if kind in ("measure", "functional"):
        titles = {
            "measure": "measures: similarity of representations (measure=ID)\ninvariant to: "
            + ", ".join(f"{code} {words}" for code, words in INVARIANCES.items()),
            "functional": "functional: similarity of outputs (measure of a gate)",
        }
        columns = ["id", "range", "larger is more", "what"]
        if kind == "measure":
            rows = [[*_measure(part), *_facts(part)] for part in parts(kind).values()]
            return table(titles[kind], [*columns, "invariant to", "source"], rows)
        rows = [[*_measure(part), FORMS[getattr(part.make, "form", "classes")]] for part in parts(kind).values()]
        return table(titles[kind], [*columns, "outputs that it fits"], rows)
    chosen = {"corruption": "inputs of a gate", "study": "simprune study recipe=NAME"}
    keys = [option.name for option in recipe_table() if option.metadata["kind"] == kind] or [chosen[kind]]
    rows = [
        [part.name, part.summary, ", ".join([*part.options, *(["..."] if part.open else [])])]
        for part in parts(kind).values()
    ]
    return table(f"{name} ({keys[0]})", ["name", "what", "options"], rows)


def _facts(part: Part) -> list[str]:
    """The invariances of a measure, as codes that the title explains, and its source."""
    measure: Any = part.make
    invariances = getattr(measure, "invariant_to", None)
    if not isinstance(invariances, frozenset):  # it may depend on an option
        invariances = measure().invariant_to
    return [", ".join(code for code in INVARIANCES if code in invariances) or "nothing", str(measure.source)]


def _measure(part: Part) -> list[str]:
    measure: Any = part.make
    low, high = measure.range if isinstance(measure.range, tuple) else measure().range  # it may depend on an option
    direction = "similar" if measure.larger_is_more_similar else "different"
    labels = "; needs labels" if measure.needs_labels else ""
    gate = "" if getattr(measure, "gate", True) else "; no gate"
    return [part.name, f"{low:.4g} .. {high:.4g}", direction, part.summary + labels + gate]
