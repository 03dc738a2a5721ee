"""The page beside exported files, README.md: what was removed, what it costs now, what the checks said."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from simprune.core.cost import KINDS

MOST = 60  # edits that are listed


def card(title: str, usage: str, format: str, base: str, report: Mapping[str, Any], notes: Sequence[str]) -> str:
    """A model card in Markdown.

    Args:
        title: of the page.
        usage: lines of Python that open the files.
        format: of the files; folders of transformers get the head that the hub reads.
        base: what the original was loaded from; a local path is not named.
        report: of `simprune.compress`, or an empty mapping.
        notes: what a user of the files has to know.
    """
    lines = []
    if format == "transformers":
        lines += ["---", "library_name: transformers", "tags: [simprune, pruned]"]
        lines += [f"base_model: {base}"] if on_hub(base) else []
        lines += ["---", ""]
    lines += [f"# {title}", ""]
    if report:
        lines += ["A smaller version of another model, made with simprune. The original's licence holds.", ""]
    lines += ["```python", *usage.splitlines(), "```", "", *(f"- {note}" for note in notes)]
    if report:
        lines += ["", "## Cost", "", *_costs(report), "", "## What was removed", "", *_edits(report["plan"])]
        lines += ["", "## Checks against the original", "", *_verdict(report.get("verdict"))]
    return "\n".join(lines).rstrip() + "\n"


def on_hub(name: str) -> bool:
    """Whether a name is that of a model on the hub, by its form: owner/model."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and "\\" not in name and " " not in name


def _costs(report: Mapping[str, Any]) -> Iterator[str]:
    stages = [stage for stage in report["stages"] if stage["name"] != "random control"]
    before, after = stages[0], stages[-1]
    rows = [
        (kind, f"{before[kind]:,}", f"{after[kind]:,}", f"{after[kind] / max(before[kind], 1):.1%}") for kind in KINDS
    ]
    return _table(("", "original", "here", "share"), rows)


def _edits(plan: Mapping[str, Any]) -> Iterator[str]:
    edits = plan["edits"]
    rows = []
    for edit in edits[:MOST]:
        number = "whole" if edit["remove"] == "block" else f"{len(edit['indices'])} of {edit['of']}"
        damage = edit.get("damage")
        rows.append((edit["remove"], edit["name"], number, "" if damage is None else f"{damage:.2g}", edit["reason"]))
    yield from _table(("what", "where", "how many", "expected damage", "reason"), rows)
    if len(edits) > MOST:
        yield f"\nand {len(edits) - MOST} others; plan.yaml has them all"


def _verdict(verdict: Mapping[str, Any] | None) -> Iterator[str]:
    if verdict is None:
        yield "None: there were no test data."
        return
    yield f"**{verdict['outcome']}** on {verdict['count']:,} samples\n"
    numbers = ("value", "lower", "upper", "limit")
    rows = [(gate["measure"], *(_number(gate[key]) for key in numbers), gate["outcome"]) for gate in verdict["gates"]]
    yield from _table(("check", *numbers, "outcome"), rows)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else str(value or "")


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in row)} |"
