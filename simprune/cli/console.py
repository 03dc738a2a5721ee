"""Tables and lines that the command line prints, plain when piped."""

import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from simprune.core.plan import Plan
from simprune.edit.reopening import Reopening
from simprune.report import FOLLOWS, units

PIPED = 120  # columns of a file or pipe


def width() -> int:
    """Columns of standard output: what COLUMNS says, else those of the terminal, or 120 in a file or pipe."""
    screen = Console()
    return screen.width if screen.is_terminal or os.environ.get("COLUMNS", "").isdigit() else PIPED


def show(*parts: Table | str | None) -> None:
    """Print tables and lines, one below the other; lines are not wrapped, and None is left out.

    No word is broken: a table that does not fit into the width without is printed as a list, row after row.
    """
    screen = Console(highlight=False, emoji=False, markup=False, width=width())
    fitted = [fitting(part, screen) if isinstance(part, Table) else part for part in parts if part is not None]
    screen.print(*fitted, sep="\n", soft_wrap=True)


def table(title: str | None, columns: Sequence[str], rows: Iterable[Iterable[str]], right: Sequence[str] = ()) -> Table:
    """A table of text; columns named in `right` are aligned to the right."""
    content = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        content.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        content.add_row(*row)
    return content


def fitting(content: Table, screen: Console) -> Table | str:
    """The table with widths at which no word is broken, or its rows as a list where there are none."""
    texts = [[str(column.header), *map(str, column.cells)] for column in content.columns]
    least = [max(cell_len(word) for text in column for word in [*text.split(), ""]) for column in texts]
    most = [max(cell_len(line) for text in column for line in [*text.splitlines(), ""]) for column in texts]
    spare = screen.width - sum(least) - 3 * len(texts) + 1  # beside the padding and the lines between columns
    content.title = "\n".join(_wrapped(str(content.title), screen.width)) if content.title else None
    if spare < 0:
        return _listed(content, texts, screen.width)
    wanted = [high - low for low, high in zip(least, most, strict=True)]
    share = min(1.0, spare / max(sum(wanted), 1))
    for column, low, more in zip(content.columns, least, wanted, strict=True):
        column.width = low + int(share * more)
    return content


def _listed(content: Table, columns: Sequence[Sequence[str]], most: int) -> str:
    """The rows of a table one after another, every cell as `column: text`."""
    lines = [str(content.title)] if content.title else []
    for row in zip(*(column[1:] for column in columns), strict=True):
        named = [(column[0], cell) for column, cell in zip(columns, row, strict=True) if cell]
        for number, (name, cell) in enumerate(named):
            lines += _wrapped(f"{name}: {cell}" if name else cell, most, "  " * bool(number))
    return "\n".join(lines)


def _wrapped(text: str, most: int, indent: str = "") -> list[str]:
    """Lines of at most `most` columns, unless a word is longer; lines that continue another are indented."""
    wrap = textwrap.TextWrapper(
        most,
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line for part in text.splitlines() for line in wrap.wrap(part)]


def stages(report: Mapping[str, Any]) -> Table:
    """Accuracy, agreement and cost after every stage, costs also as a share of the original's."""
    original = report["stages"][0]
    columns = ["stage", "accuracy", "agreement", "macs", "params", "bytes", "latency"]

    def cell(stage: Mapping[str, Any], column: str) -> str:
        value = stage["latency_ms" if column == "latency" else column]
        if value is None:
            return "-"
        if column in ("accuracy", "agreement"):
            return f"{value:.2%}"
        if column == "latency":
            low, high = stage.get("latency_spread_ms") or (value, value)
            return f"{value:.2f} ms ({low:.2f} to {high:.2f})"
        return f"{value:,} ({value / original[column]:.0%})" if original[column] else f"{value:,}"

    rows = [[stage["name"], *(cell(stage, column) for column in columns[1:])] for stage in report["stages"]]
    return table(None, columns, rows, right=columns[1:])


def damage(report: Mapping[str, Any]) -> str:
    """One line: the damage of the output that the plan expected, and the damage measured in the end."""
    expected = report["plan"]["expected"]
    measured = "not measured" if expected.get("outcome") is None else f"{expected['outcome']:.3g} on the test inputs"
    words = f"{expected['damage']:.3g}" if "damage" in expected else "unknown"
    line = f"damage (squared change of the output / its variance): expected {words}, in the end {measured}"
    apart = report["stages"][-1].get("damages", {})
    return "\n".join([line, *(f"  {name}: {value:.3g}" for name, value in apart.items())])


def margin(report: Mapping[str, Any]) -> str | None:
    """One line: by how much the model is better than the random control; None where that is not known."""
    control = report["stages"][-1]
    if "margin" not in control:
        return None
    value, (low, high) = control["margin"]["value"], control["margin"]["bounds"]
    return (
        f"better than random plans: {control['margin']['of']} {100 * value:+.2f} points "
        f"({100 * low:+.2f} to {100 * high:+.2f}, 95 % interval, paired)"
    )


def reopening(report: Mapping[str, Any]) -> str | None:
    """One line: whether transformers opens the model without simprune; None for a model of another kind."""
    return str(Reopening(**report["transformers"])) if "transformers" in report else None


def search(report: Mapping[str, Any]) -> Table | None:
    """Every budget that was tried, in order, and the gates that decided; None for a report without a search."""
    if "search" not in report:
        return None
    history = report["search"]
    columns = ["", "budget", "keeps", "accuracy", "agreement", "outcome", "decided by"]
    rows = []
    for index, step in enumerate(history["steps"]):
        mark = "chosen" if index == history["chosen"] else "next" if index == history["failed"] else ""
        gates = ", ".join(
            f"{gate['measure']} {gate['value']:.4g} (to {gate['upper']:.4g}), limit {gate['limit']:g}"
            if all(isinstance(gate[key], float) for key in ("value", "upper"))
            else gate["measure"]
            for gate in step["decided_by"]
        )
        reason = ": ".join(part for part in (step["reason"], gates) if part)
        shares = [units.percent(step[key], 2) for key in ("kept", "accuracy", "agreement")]
        budget = "original" if index == 0 else f"{history['kind']} {step['budget']:.3f}"
        rows.append([mark, budget, *shares, step["outcome"], reason])
    return table("Search", columns, rows, right=columns[1:5])


def frontier(data: Mapping[str, Any]) -> Table:
    """Every point of every curve; costs and latency as shares of the original's."""
    kind = data["kind"]
    columns = ["curve", "budget", *dict.fromkeys(("macs", "params", kind, "latency")), "accuracy", "agreement"]
    rows = []
    for point in data["points"]:
        shares = [units.percent(point[key]) for key in columns[2:]] if point["reachable"] else ["unreachable"]
        rows.append([point["curve"], f"{kind} {point['budget']:.0%}", *shares])
    return table("Frontier", columns, rows, right=columns[1:])


def edits(plan: Plan) -> Table:
    """The edits of a plan, with the expected damage and the reason of every edit."""
    rows = []
    for edit in plan.edits:
        removed = edit.remove if edit.remove == "block" else f"{len(edit.indices)} of {edit.of} {edit.remove}"
        rows.append([edit.name, removed, "-" if edit.damage is None else f"{edit.damage:.3g}", edit.reason])
    return table("Plan", ["where", "removes", "expected damage", "reason"], rows, right=["expected damage"])


def finalists(plan: Plan) -> Table | None:
    """The plans that were tried, by the number of blocks that they remove, and the run; None without finalists."""
    if "finalists" not in plan.planner:
        return None
    columns = ["", "blocks that go", "expected damage", "measured error"]
    rows = [
        [
            "chosen" if tried.get("chosen") else "",
            f"{tried['blocks']}" + (f": {' to '.join(tried['run'])}" if "run" in tried else ""),
            f"{tried['expected']:.3g}",
            f"{tried['measured']:.3g}",
        ]
        for tried in plan.planner["finalists"]
    ]
    return table("Finalists", columns, rows, right=columns[1:])


def costs(plan: Plan) -> str:
    """One line: the share of every cost that the plan keeps, and the damage it expects."""
    shares = {
        kind: plan.expected[kind] / cost for kind, cost in plan.original.items() if cost and kind in plan.expected
    }
    line = f"keeps {', '.join(f'{kind} {share:.1%}' for kind, share in shares.items())}"
    time, macs = shares.get("latency_ms"), shares.get("macs")
    if time is not None and macs is not None and abs(time - macs) > FOLLOWS:
        line += f"; latency does not follow the macs: {macs:.2f} of the macs take {time:.2f} of the time"
    return f"{line}; expected damage {plan.expected['damage']:.3g}" if "damage" in plan.expected else line


def sweep(content: Mapping[str, Any]) -> Table:
    """The jobs of a sweep: the overrides in which they differ, and their figures."""
    jobs = content["jobs"]
    overrides = [dict(text.lstrip("+").partition("=")[::2] for text in job["overrides"]) for job in jobs]
    keys = dict.fromkeys(key for values in overrides for key in values)
    swept = [key for key in keys if len({values.get(key) for values in overrides}) > 1]
    figures = list(dict.fromkeys(key for job in jobs for key in job["figures"] if key != "bytes"))
    errors = ["error"] if any(job["error"] for job in jobs) else []

    def cell(key: str, value: Any) -> str:
        if not isinstance(value, int | float):
            return "-" if value is None else str(value)
        return f"{value:.2f}" if key == "latency_ms" else f"{value:.1%}"

    rows = []
    for job, values in zip(jobs, overrides, strict=True):
        cells = [*(values.get(key, "-") for key in swept), *(cell(key, job["figures"].get(key)) for key in figures)]
        rows.append([str(job["job"]), *cells, *(job[key] or "" for key in errors)])
    right = ["job", *(key for key in figures if key != "outcome")]
    return table("Sweep", ["job", *swept, *figures, *errors], rows, right)
