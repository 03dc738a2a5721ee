"""The one environment of all templates: every text is escaped, numbers are written as in `units`."""

import re
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from simprune.core.plain import settings

from . import marks, units

FOLDER = Path(__file__).parent
OUTCOMES = {"pass": "Passed", "fail": "Failed", "inconclusive": "Inconclusive", "unchecked": "Not checked"}
FILTERS = ("number", "fixed", "percent", "points", "count", "milliseconds")


def fill(template: str, *styles: str, **values) -> str:
    """A page from a template and values; `styles` are files of styles that it needs beside those of every page."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(units, name) for name in FILTERS} | {"settings": settings, "name": _breakable}
    environment.filters["folding"] = _folding
    environment.filters["measured"] = lambda value: value if isinstance(value, str) else units.number(value)
    environment.globals |= {
        "marks": marks, "bounds": units.bounds, "ranges": units.ranges, "OUTCOMES": OUTCOMES,
        "verdict_sentence": verdict_sentence,
        "style": Markup("\n").join(Markup(text(name)) for name in ("style.css", *styles)),
    }  # fmt: skip
    return _unbroken(environment.get_template(template).render(**values))


def text(name: str) -> str:
    """A file of this folder."""
    return (FOLDER / name).read_text(encoding="utf-8")


def verdict_sentence(verdict: dict | None) -> str:
    """What the gates say, with the number of test inputs they rest on."""
    if verdict is None or not verdict["gates"]:
        return "No gate was checked, so nothing is claimed about the behaviour."
    gates, on = verdict["gates"], f"{verdict['count']} test inputs"
    outcomes = [gate["outcome"] for gate in gates]
    if failed := outcomes.count("fail"):
        return f"{failed} of {len(gates)} gates failed on {on}."
    if undecided := outcomes.count("inconclusive"):
        return f"{undecided} of {len(gates)} gates cannot be decided with {on}."
    return f"Every gate holds on {on} ({len(gates)} checked)."


def _breakable(name: str) -> Markup:
    """A module's name that wraps after its dots."""
    return Markup("<wbr>").join(re.findall(r"[^.]*\.|[^.]+", name))


def _folding(rows: Markup, heads: Sequence[str]) -> Markup:
    """Rows of a table whose cells name their column, so that a narrow page can show every row as a card.

    >>> print(_folding(Markup('<tr><th scope="row">a</th><td>1</td></tr>'), ["name", "<share"]))
    <tr><th scope="row">a</th><td data-label="share">1</td></tr>
    """

    def named(row: re.Match) -> str:
        columns: Iterator[int] = count()

        def cell(start: re.Match) -> str:
            column, spanned = next(columns), re.search(r'colspan="(\d+)"', start[0])
            for _ in range(int(spanned[1]) - 1 if spanned else 0):
                next(columns)
            label = "" if start[1] == "th" or spanned else heads[column].removeprefix("<")
            return start[0].replace("<td", f'<td data-label="{escape(label)}"', 1) if label else start[0]

        return re.sub(r"<(t[hd])\b[^>]*>", cell, row[0])

    return Markup(re.sub(r"(?s)<tr\b.*?</tr>", named, rows))


WHOLE = r"(?s)(<(?:script|style|title|svg|pre)\b.*?</(?:script|style|title|svg|pre)>)"  # elements whose text stays


def _unbroken(page: str) -> str:
    """The page with words that no line may break at their hyphen.

    >>> print(_unbroken("<p title='multiply-adds'>multiply-adds</p>"))
    <p title='multiply-adds'><span class="whole">multiply-adds</span></p>
    """
    parts = re.split(WHOLE, page)
    wrapped = r'<span class="whole">\1</span>'
    parts[::2] = (re.sub(r"(?i)(multiply-adds)(?=[^<>]*<)", wrapped, part) for part in parts[::2])
    return "".join(parts)
