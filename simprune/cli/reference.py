"""`docs/reference.md`, written by `make docs` from the tables of options and the registry."""

from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field
from typing import Any, get_type_hints

from simprune.cli.help import LISTED
from simprune.core.options import Options, default_of, describe, listed, phrase
from simprune.core.registry import Choice, Part, parts
from simprune.settings import ALL, READ_BY, Recipe, Settings, group, recipe_table


def reference() -> str:
    """The page as text."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# Options and parts"
    yield "\nMade by `make docs` from `simprune/settings.py` and the registry; do not edit."
    yield "\n## Options of a run\n\nIn a recipe, or `key=value` on the command line. In Python `check` is `gates` and"
    yield "`correction`, and the list of a `budget` is `budgets` and `kind` of `frontier`.\n"
    rows = (_row(option, Recipe) for option in recipe_table())
    yield from _table(("option", "expects", "default", "what", "commands"), rows)
    for option in recipe_table():
        inner = group(option)
        if inner is not None:
            yield f"\n### {option.name}\n\n{(inner.__doc__ or '').strip()}\n"
            rows = (_row(nested, inner)[:4] for nested in listed(inner))
            yield from _table(("option", "expects", "default", "what"), rows)
    yield "\n## Arguments of Python's functions\n"
    yield from _table(
        ("function", "options"),
        ([f"`{name}`", ", ".join(f"`{option.name}`" for option in listed(Settings, name))] for name in ALL),
    )
    for name, kind in LISTED.items():
        if kind:
            yield f"\n## {name.replace('_', ' ').capitalize()}\n"
            yield from _table(("name", "what", "options", "source"), map(_part, parts(kind).values()))


def _row(option: Field, of: type[Options]) -> list[str]:
    hint, inner = get_type_hints(of)[option.name], group(option, of)
    expects = "a mapping" if inner else phrase(hint, option.metadata)
    if option.metadata["kind"] and (inner or hint in (Any, Choice)):
        expects = "a name, or a mapping with name and options"
    if option.name == "budget":
        expects = "a mapping, smallest, or a list"
    default = default_of(option)
    shown = "" if default in (None, (), {}) else f"`{list(default) if isinstance(default, tuple) else default}`"
    commands = [name for name in READ_BY if option in recipe_table(name)] if of is Recipe else []
    return [f"`{option.name}`", expects, shown, describe(option), ", ".join(commands)]


def _part(part: Part) -> list[str]:
    options = [name if value is MISSING else f"{name}={value!r}" for name, value in part.options.items()]
    source = part.source or getattr(part.make, "source", "") or ""
    return [f"`{part.name}`", part.summary, ", ".join(f"`{option}`" for option in options), str(source)]


def _table(header: Sequence[str], rows: Any) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in row)} |"


if __name__ == "__main__":
    print(reference(), end="")
