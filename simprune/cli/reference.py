"""Pages of the reference, made from the tables of options, the registry and the docstrings; `make docs` builds them."""

import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, Field
from typing import Any, get_type_hints

import simprune
from simprune.cli.help import DETAILS, HELP, LISTED, details
from simprune.core.options import Options, default_of, describe, listed, phrase
from simprune.core.registry import Choice, Part, parts
from simprune.functional import FORMS
from simprune.measures._base import INVARIANCES
from simprune.settings import ALL, READ_BY, Recipe, Settings, group, recipe_table

MEASURES = {"measures": "measure", "functional": "functional"}  # lists of what has a page of its own
# What stands above the entries of a page.
PYTHON = """\
# Python

`import simprune as sp`; every name below is in `sp`. Options that a function takes beside its arguments are in
[Options](options.md): each has the same name in Python, in a recipe and on the command line.
"""
OPTIONS = """\
# Options

In a recipe, or `key=value` on the command line. In Python `check` is `gates` and `correction`, and the list of a
`budget` is `budgets` and `kind` of `frontier`.
"""
PARTS = """\
# Parts

Everything that a recipe chooses by name, except measures: they have [a page](measures.md), and so do
[functional measures](functional.md). A part of your own is one file; see [Contributing](../contributing.md).
"""
MEASURES_OF_ROWS = """\
# Measures of representations

X is (N, D), Y is (N, D'): a row for each of the same N inputs. Formulas are plain text: `X'` is the transpose, `|X|`
the Frobenius norm, `|X|_*` the nuclear norm.

```python
import simprune as sp
import torch

X = torch.randn(64, 8)
assert round(sp.measures.get("cka")(X, 2 * X), 4) == 1.0
```
"""
MEASURES_OF_OUTPUTS = """\
# Functional measures

They compare what two models answer, a the original and b the pruned one, on N inputs with C classes. Those that are
gates have confidence bounds.

```python
import simprune as sp

a, b = [[2.0, 1.0], [0.0, 1.0]], [[2.0, 1.0], [1.0, 0.0]]
assert sp.functional.get("disagreement")(a, b) == 0.5
```
"""
SECTION = re.compile(r"^(Args|Returns|Raises):$", re.M)  # of a docstring


def pages() -> dict[str, str]:
    """The Markdown of every page, by its path in the folder of the documentation.

    >>> sorted(pages())[:2]
    ['reference/command-line.md', 'reference/functional.md']
    """
    made = {
        "python": _python, "command-line": _command_line, "options": _options, "parts": _all_parts,
        "measures": _measures, "functional": _functional,
    }  # fmt: skip
    return {f"reference/{name}.md": "\n".join(lines()) + "\n" for name, lines in made.items()}


def _python() -> Iterator[str]:
    yield PYTHON
    for home, names in simprune.HOMES.items():
        for name in names:
            yield f"\n::: simprune.{home}.{name}\n    options:\n      heading: sp.{name}\n"
    for module in ("measures", "functional"):
        yield f"\n## sp.{module}\n\n::: simprune.{module}\n    options:\n      show_root_heading: false"
        yield f"      members: {getattr(simprune, module).__all__!r}\n"


def _command_line() -> Iterator[str]:
    yield f"# Command line\n\n```text\n{HELP}\n```"
    for command in DETAILS:
        yield f"\n## simprune {command}\n\n```text\n{details(command)}\n```"


def _options() -> Iterator[str]:
    yield OPTIONS
    rows = (_row(option, Recipe) for option in recipe_table())
    yield from _table(("option", "expects", "default", "what", "commands"), rows)
    for option in recipe_table():
        inner = group(option)
        if inner is not None:
            yield f"\n## {option.name}\n\n{(inner.__doc__ or '').strip()}\n"
            rows = (_row(nested, inner)[:4] for nested in listed(inner))
            yield from _table(("option", "expects", "default", "what"), rows)
    yield "\n## Arguments of Python's functions\n"
    yield from _table(
        ("function", "options"),
        ([f"`{name}`", ", ".join(f"`{option.name}`" for option in listed(Settings, name))] for name in ALL),
    )


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


def _all_parts() -> Iterator[str]:
    yield PARTS
    for name, kind in LISTED.items():
        if kind and name not in MEASURES:
            yield f"\n## {name.replace('_', ' ').capitalize()}"
            for part in parts(kind).values():
                yield f"\n### {part.name}\n"
                yield from _prose(part)
                yield from _facts({"options": _choices(part), "source": _source(part)})


def _measures() -> Iterator[str]:
    yield MEASURES_OF_ROWS
    yield f"Invariances: {', '.join(f'{code} is {meaning}' for code, meaning in INVARIANCES.items())}."
    for part in parts("measure").values():
        measure = part.make
        low, high = _trait(part, "range")
        codes = [code for code in INVARIANCES if code in _trait(part, "invariant_to")]
        yield f"\n## {part.name}\n"
        yield from _prose(part)
        yield from _facts(
            {
                "range": f"{low:.4g} to {high:.4g}; larger is more {_direction(part)}",
                "invariant to": ", ".join(codes) or "nothing",
                "symmetric": _yes(_trait(part, "symmetric")) + ("; a metric" if _trait(part, "is_metric") else ""),
                "needs": ", ".join(_needs(measure)),
                "cost": escaped(measure.cost),
                "undefined where": escaped(measure.undefined),
                "options": _choices(part),
                "source": _source(part),
            }
        )


def _needs(measure: Any) -> Iterator[str]:
    yield f"{measure.minimum_rows} rows"
    yield from (["labels"] if measure.needs_labels else [])
    yield from measure.extras


def _functional() -> Iterator[str]:
    yield MEASURES_OF_OUTPUTS
    for part in parts("functional").values():
        measure: Any = part.make
        low, high = _trait(part, "range")
        yield f"\n## {part.name}\n"
        yield from _prose(part)
        yield from _facts(
            {
                "range": f"{low:.4g} to {high:.4g}; larger is more {_direction(part)}",
                "outputs": FORMS[measure.form],
                "labels": "needed" if measure.needs_labels else "not needed",
                "symmetric": _yes(_trait(part, "symmetric")),
                "cost": "one row per sample" if measure.streams else "all outputs are stored",
                "gate": _yes(measure.gate),
                "options": _choices(part),
                "source": _source(part),
            }
        )


def _trait(part: Part, name: str) -> Any:
    """What a measure states of itself, with default options where it depends on options."""
    stated = getattr(part.make, name)
    return getattr(part.make(), name) if isinstance(stated, property) else stated


def _direction(part: Part) -> str:
    return "similar" if _trait(part, "larger_is_more_similar") else "different"


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def _choices(part: Part) -> str:
    options = [name if value is MISSING else f"{name}={value!r}" for name, value in part.options.items()]
    return ", ".join(f"`{option}`" for option in options)


def _source(part: Part) -> str:
    return escaped(str(part.source or getattr(part.make, "source", "") or ""))


def _prose(part: Part) -> Iterator[str]:
    """The docstring as Markdown: text, what its options mean, and the example; its source is left to the facts."""
    text, _, example = inspect.cleandoc(part.make.__doc__ or "").partition("\n>>>")
    body, *sections = SECTION.split(text)
    for paragraph in body.strip().split("\n\n"):
        if not paragraph.startswith("Source: "):
            yield f"{escaped(paragraph)}\n"
    for title, content in zip(sections[::2], sections[1::2], strict=True):
        if title == "Args":
            entries = re.split(r"\n(?=\S)", inspect.cleandoc(content).strip())
            named = [entry for entry in entries if entry.partition(":")[0] in part.options]
            yield from (f"- `{name}`: {escaped(' '.join(said.split()))}" for name, _, said in map(_halves, named))
            yield ""
    if example:
        yield f"```pycon\n>>>{example.rstrip()}\n```\n"


def _halves(entry: str) -> tuple[str, str, str]:
    return entry.partition(":")


def escaped(text: str) -> str:
    """Text of a docstring as Markdown that shows the same; what stands in backticks stays as it is.

    >>> escaped("|X'Y|_* in [0, 1], see `a_b`")
    "|X'Y|\\\\_\\\\* in \\\\[0, 1], see `a_b`"
    """
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(
        piece if piece.startswith("`") else re.sub(r"([*_\[])", r"\\\1", piece).replace("<", "&lt;") for piece in pieces
    )


def _facts(facts: dict[str, str]) -> Iterator[str]:
    """A list of what is known."""
    yield from (f"- {name}: {said}" for name, said in facts.items() if said)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in row)} |"
