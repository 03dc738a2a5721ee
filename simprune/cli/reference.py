"""`docs/reference.md`, made from the tables of options and the registry: `make docs`."""

from collections.abc import Iterator, Sequence
from dataclasses import MISSING
from typing import Any, get_type_hints

from simprune.cli.help import LISTED
from simprune.cli.listing import KINDS
from simprune.core.options import Options, default_of, describe, listed, phrase
from simprune.core.registry import Choice, Part, parts
from simprune.settings import Recipe, Settings, group, recipe_table

COMMANDS = ("analyze", "plan", "compress", "validate")
FUNCTIONS = ("analyze", "plan", "compress", "frontier", "validate")


def reference() -> str:
    """The page as text."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# Options and parts"
    yield "\nMade by `make docs` from `simprune/settings.py` and the registry; do not edit."
    yield "\n## Options of a run\n\nIn a recipe, or `key=value` on the command line. In Python `check` is `gates` and"
    yield "`correction`, and the list of a `budget` is `budgets` and `kind` of `frontier`.\n"
    rows = (_row(each, Recipe) for each in recipe_table())
    yield from _table(("option", "expects", "default", "what", "commands"), rows)
    for each in recipe_table():
        inner = group(each)
        if inner is not None:
            yield f"\n### {each.name}\n\n{(inner.__doc__ or '').strip()}\n"
            own = [one for one in inner.__dataclass_fields__.values() if one.metadata]  # pyright: ignore
            rows = (_row(one, inner)[:4] for one in own)
            yield from _table(("option", "expects", "default", "what"), rows)
    yield "\n## Arguments of Python's functions\n"
    yield from _table(
        ("function", "options"),
        ([f"`{name}`", ", ".join(f"`{each.name}`" for each in listed(Settings, name))] for name in FUNCTIONS),
    )
    for name in LISTED:
        if name == "recipes":
            continue
        kind = "measure" if name == "measures" else "functional" if name == "functional" else KINDS[name][0]
        yield f"\n## {name.replace('_', ' ').capitalize()}\n"
        yield from _table(("name", "what", "options", "source"), map(_part, parts(kind).values()))


def _row(each: Any, of: type[Options]) -> list[str]:
    hint, inner = get_type_hints(of)[each.name], group(each, of)
    expects = "a mapping" if inner else phrase(hint, each.metadata)
    if each.metadata["kind"] and (inner or hint in (Any, Choice)):
        expects = "a name, or a mapping with name and options"
    if each.name == "budget":
        expects = "a mapping, smallest, or a list"
    default = default_of(each)
    shown = "" if default in (None, (), {}) else f"`{list(default) if isinstance(default, tuple) else default}`"
    commands = [name for name in COMMANDS if each in recipe_table(name)] if of is Recipe else []
    return [f"`{each.name}`", expects, shown, describe(each), ", ".join(commands)]


def _part(part: Part) -> list[str]:
    options = [name if value is MISSING else f"{name}={value!r}" for name, value in part.options.items()]
    source = part.source or getattr(part.make, "source", "") or ""
    return [f"`{part.name}`", part.summary, ", ".join(f"`{each}`" for each in options), str(source)]


def _table(header: Sequence[str], rows: Any) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in row)} |"


if __name__ == "__main__":
    print(reference(), end="")
