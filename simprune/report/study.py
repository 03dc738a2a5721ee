"""The findings of a study as a page, and as Markdown for documentation: pure functions of findings.json."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import charts, units
from .template import fill

CHARTS = {
    "dots": charts.dots,
    "lines": charts.lines,
    "scatter": charts.scatter,
    "similarity_map": charts.similarity_map,
}


def render_study(findings: Mapping[str, Any]) -> str:
    """The page as text; every text is escaped, nothing is loaded.

    Args:
        findings: the content of findings.json.
    """
    pictures = [
        (charts.inline(chart, name), entry["caption"])
        for (name, chart), entry in zip(_charts(findings).items(), findings["figures"], strict=True)
    ]
    return fill("study.html", findings=findings, about=findings["about"], pictures=pictures, cell=cell_text)


def save_study_figures(findings: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write every figure as .svg and .png, and return the paths."""
    return charts.save(_charts(findings), folder)


def markdown(findings: Mapping[str, Any], figures: str = "figures") -> str:
    """The findings as a page of Markdown.

    Args:
        findings: the content of findings.json.
        figures: where the .png files of the figures are, seen from the page.
    """
    return "\n".join(_lines(findings, figures)) + "\n"


def cell_text(cell: Any) -> str:
    """A cell of a table in words: a number, a value with its bounds, a text.

    >>> cell_text([0.51234, 0.4, 0.6]), cell_text(None), cell_text("vit")
    ('0.512 (0.4 to 0.6)', '–', 'vit')
    """
    if isinstance(cell, list | tuple):
        value, low, high = cell
        bounds = "" if low is None or high is None else f" ({units.number(low)} to {units.number(high)})"
        return units.number(value) + bounds
    return cell if isinstance(cell, str) else units.number(cell)


def _charts(findings: Mapping[str, Any]) -> dict[str, charts.Chart]:
    return {entry["name"]: CHARTS[entry["chart"]](**entry["data"]) for entry in findings["figures"]}


def _lines(findings: Mapping[str, Any], figures: str) -> Iterable[str]:
    about = findings["about"]
    yield f"# {about['question']}\n"
    yield from (f"{paragraph}\n" for paragraph in about["paragraphs"])
    if about["source"]:
        yield f"Source: {about['source']}\n"
    yield f"```\n{about['command']}\n```\n"
    for title, key in (
        ("Conclusions", "conclusions"),
        ("Controls", "controls"),
        ("What cannot be concluded", "limits"),
    ):
        if findings[key]:
            yield f"## {title}\n"
            yield from (f"- {sentence}" for sentence in findings[key])
            yield ""
    for entry in findings["figures"]:
        yield f"![{entry['caption']}]({figures}/{entry['name']}.png)\n\n{entry['caption']}\n"
    for table in findings["tables"]:
        yield f"## {table['title']}\n"
        yield from _table(table["columns"], table["rows"])
        yield f"\n{table['note']}\n" if table["note"] else ""
    settings = ", ".join(f"{key} {value}" for key, value in about["settings"].items())
    yield f"Run with simprune {about['simprune']}: {settings}."


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterable[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(cell_text(cell).replace('|', chr(92) + '|') for cell in row)} |"
