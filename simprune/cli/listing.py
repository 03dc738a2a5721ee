"""`simprune list`: what there is to choose from."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from simprune import functional, measures
from simprune.cli.console import console, table
from simprune.cli.recipe import builtin, options
from simprune.core.names import did_you_mean

GROUPS = {
    "models": "model",
    "data": "data",
    "scores": "score",
    "planners": "planner",
    "finetunes": "finetune",
    "checks": "check",
}
LISTS = ("measures", "functional", "recipes", *GROUPS)


def show(args: Sequence[str]) -> None:
    """Print one list, or all of them; ValueError for an unknown one."""
    for name in args:
        if name not in LISTS:
            raise ValueError(f"no list {name!r}; {did_you_mean(name, LISTS)}")
    screen = console()
    for name in args or LISTS:
        screen.print(_list(name))


def _list(name: str) -> Table:
    if name == "measures":
        return _measures("measures: similarity of representations (measure=ID)", measures.classes())
    if name == "functional":
        return _measures("functional: similarity of outputs (in a check's gates)", functional.classes())
    folder = builtin("recipes") if name == "recipes" else builtin("conf") / GROUPS[name]
    key = "recipe" if name == "recipes" else GROUPS[name]
    return table(f"{name} ({key}=NAME)", ["name", "what"], [list(item) for item in options(folder).items()])


def _measures(title: str, classes: dict[str, Any]) -> Table:
    def row(id: str, kind: Any) -> list[str]:
        low, high = kind.range if isinstance(kind.range, tuple) else kind().range  # it may depend on an option
        direction = "similar" if kind.larger_is_more_similar else "different"
        labels = "; needs labels" if kind.needs_labels else ""
        what = (kind.__doc__ or "").partition("\n")[0]
        return [id, f"{low:.4g} .. {high:.4g}", direction, what + labels]

    columns = ["id", "range", "larger is more", "what"]
    return table(title, columns, [row(id, kind) for id, kind in classes.items()])
