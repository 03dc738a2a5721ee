"""Tables and lines that the command line prints, plain when piped."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from simprune.core.plan import Plan
from simprune.edit.reopening import Reopening
from simprune.report import FOLLOWS, units


def width() -> int:
    """Columns of standard output: those of the terminal, or 120 in a file or pipe."""
    screen = Console()
    return screen.width if screen.is_terminal else 120


def show(*parts: Table | str | None) -> None:
    """Print tables and lines, one below the other; lines are not wrapped, and None is left out."""
    screen = Console(highlight=False, emoji=False, markup=False, width=width())
    screen.print(*(part for part in parts if part is not None), sep="\n", soft_wrap=True)


def table(title: str | None, columns: Sequence[str], rows: Iterable[Iterable[str]], right: Sequence[str] = ()) -> Table:
    """A table of text; columns named in `right` are aligned to the right."""
    content = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        content.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        content.add_row(*row)
    return content


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
            return f"{value:.2f} ms"
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
    """The plans that were tried, by the number of blocks that they remove; None without finalists."""
    if "finalists" not in plan.planner:
        return None
    columns = ["", "blocks that go", "expected damage", "measured damage"]
    rows = [
        [
            "chosen" if tried.get("chosen") else "",
            f"{tried['blocks']}",
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
