"""`simprune list`: what there is to choose from."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from simprune import functional, measures
from simprune.cli.console import console, table
from simprune.cli.folders import builtin, options
from simprune.cli.help import LISTED
from simprune.core.names import did_you_mean
from simprune.core.registry import Part, parts

# The kind of every list, and the key by which a recipe chooses; measures and recipes have tables of their own.
KINDS = {
    "models": ("model", "model"), "data": ("data", "data"), "structures": ("structure", "structures"),
    "scores": ("score", "score"), "block_scores": ("block_score", "block_score"), "planners": ("planner", "planner"),
    "repairs": ("repair", "reconstruct"), "checks": ("check", "check"),
    "corruptions": ("corruption", "inputs of a gate"),
}  # fmt: skip


def show(args: Sequence[str]) -> None:
    """Print one list, or all of them; ValueError for an unknown one."""
    for name in args:
        if name not in LISTED:
            raise ValueError(f"no list {name!r}; {did_you_mean(name, LISTED)}")
    screen = console()
    for name in args or LISTED:
        screen.print(_list(name))


def _list(name: str) -> Table:
    if name == "measures":
        return _measures("measures: similarity of representations (measure=ID)", measures.classes())
    if name == "functional":
        return _measures("functional: similarity of outputs", functional.classes())
    if name == "recipes":
        rows = [list(item) for item in options(builtin("recipes")).items()]
        return table("recipes (recipe=NAME)", ["name", "what"], rows)
    kind, key = KINDS[name]
    rows = [[part.name, part.summary, _options(part)] for part in parts(kind).values()]
    return table(f"{name} ({key})", ["name", "what", "options"], rows)


def _options(part: Part) -> str:
    return ", ".join([*part.options, *(["..."] if part.open else [])])


def _measures(title: str, classes: dict[str, Any]) -> Table:
    def row(id: str, kind: Any) -> list[str]:
        low, high = kind.range if isinstance(kind.range, tuple) else kind().range  # it may depend on an option
        direction = "similar" if kind.larger_is_more_similar else "different"
        labels = "; needs labels" if kind.needs_labels else ""
        gate = "" if getattr(kind, "gate", True) else "; no gate"
        what = (kind.__doc__ or "").partition("\n")[0]
        return [id, f"{low:.4g} .. {high:.4g}", direction, what + labels + gate]

    columns = ["id", "range", "larger is more", "what"]
    return table(title, columns, [row(id, kind) for id, kind in classes.items()])
