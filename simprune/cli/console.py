"""What the command line prints: tables, plain when piped."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from simprune.core.plan import Edit, Plan
from simprune.report import FOLLOWS, units


def console() -> Console:
    """Standard output; as wide as the terminal, or 120 columns in a file or pipe."""
    found = Console(highlight=False, emoji=False)
    return found if found.is_terminal else Console(highlight=False, emoji=False, width=120)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> Table:
    """A table of text; columns named in `right` are aligned to the right."""
    made = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def stages(report: Mapping[str, Any]) -> Table:
    """Accuracy, agreement and cost after every stage, costs also as a share of the original's."""
    original = report["stages"][0]
    columns = ["stage", "accuracy", "agreement", "macs", "params", "bytes", "latency"]

    def cell(stage: Mapping[str, Any], column: str) -> str:
        value = stage["latency_ms"] if column == "latency" else stage[column]
        if value is None:
            return "-"
        if column in ("accuracy", "agreement"):
            return f"{value:.2%}"
        if column == "latency":
            return f"{value:.2f} ms"
        return f"{value:,} ({value / original[column]:.0%})" if original[column] else f"{value:,}"

    rows = [[stage["name"], *(cell(stage, column) for column in columns[1:])] for stage in report["stages"]]
    return table("", columns, rows, right=columns[1:])


def damage(report: Mapping[str, Any]) -> str:
    """One line: what the plan expected the output to lose, and what was measured in the end."""
    expected = report["plan"]["expected"]
    found = "not measured" if expected.get("outcome") is None else f"{expected['outcome']:.3g} on the test inputs"
    words = f"{expected['damage']:.3g}" if "damage" in expected else "unknown"
    return f"damage (squared change of the output / its variance): expected {words}, in the end {found}"


def search(history: Mapping[str, Any]) -> Table:
    """Every budget that was tried, in order, and what decided; the chosen one is marked."""
    columns = ["", "budget", "keeps", "accuracy", "agreement", "outcome", "decided by"]
    rows = []
    for place, step in enumerate(history["steps"]):
        mark = "chosen" if place == history["chosen"] else "next" if place == history["failed"] else ""
        gates = ", ".join(
            f"{gate['measure']} {gate['value']:.4g} (to {gate['upper']:.4g}), limit {gate['limit']:g}"
            if all(isinstance(gate[key], float) for key in ("value", "upper"))
            else gate["measure"]
            for gate in step["decided_by"]
        )
        why = ": ".join(part for part in (step["reason"], gates) if part)
        shares = [units.percent(step[key], 2) for key in ("kept", "accuracy", "agreement")]
        asked = "original" if place == 0 else f"{history['kind']} {step['budget']:.3f}"
        rows.append([mark, asked, *shares, step["outcome"], why])
    return table("Search", columns, rows, right=columns[1:5])


def frontier(data: Mapping[str, Any]) -> Table:
    """Every point of every curve; costs and latency as shares of the original's."""
    kind = data["kind"]
    columns = ["curve", "budget", *dict.fromkeys(("macs", "params", kind, "latency")), "accuracy", "agreement"]
    rows = []
    for point in data["points"]:
        shares = [units.percent(point[key]) for key in columns[2:]]
        rows.append(
            [point["curve"], f"{kind} {point['budget']:.0%}", *(shares if point["reachable"] else ["unreachable"])]
        )
    return table("Frontier", columns, rows, right=columns[1:])


def edits(plan: Plan) -> Table:
    """What a plan removes, what it expects that to damage, and why."""

    def removes(edit: Edit) -> str:
        return edit.remove if edit.remove == "block" else f"{len(edit.indices)} of {edit.of} {edit.remove}"

    def damage(edit: Edit) -> str:
        return "-" if edit.damage is None else f"{edit.damage:.3g}"

    rows = [[edit.name, removes(edit), damage(edit), edit.reason] for edit in plan.edits]
    return table("Plan", ["where", "removes", "expected damage", "reason"], rows, right=["expected damage"])


def finalists(plan: Plan) -> Table:
    """The plans that were tried, by the number of blocks that they remove; the chosen one is marked."""
    tried = plan.planner["finalists"]
    rows = [
        [
            "chosen" if each.get("chosen") else "",
            str(each["blocks"]),
            *(f"{each[key]:.3g}" for key in ("expected", "measured")),
        ]
        for each in tried
    ]
    columns = ["", "blocks that go", "expected damage", "measured damage"]
    return table("Finalists", columns, rows, right=columns[1:])


def costs(plan: Plan) -> str:
    """One line: what the plan keeps of every cost, and the damage it expects."""
    kept = [
        f"{kind} {plan.expected[kind] / whole:.1%}"
        for kind, whole in plan.original.items()
        if whole and kind in plan.expected
    ]
    words = f"keeps {', '.join(kept)}"
    if plan.original.get("latency_ms") and plan.original.get("macs"):
        time, macs = (plan.expected[kind] / plan.original[kind] for kind in ("latency_ms", "macs"))
        if abs(time - macs) > FOLLOWS:
            words += f"; latency does not follow the macs: {macs:.2f} of the macs take {time:.2f} of the time"
    damage = f"; expected damage {plan.expected['damage']:.3g}" if "damage" in plan.expected else ""
    return words + damage


def show_sweep(found: Mapping[str, Any]) -> None:
    """Print a sweep's jobs: what differs between them, what came out, and where everything is."""
    jobs = found["jobs"]
    given = [dict(each.lstrip("+").partition("=")[::2] for each in job["overrides"]) for job in jobs]
    every = list(dict.fromkeys(key for each in given for key in each))
    swept = [key for key in every if len({each.get(key) for each in given}) > 1]
    figures = list(dict.fromkeys(key for job in jobs for key in job["figures"] if key != "bytes"))

    def cell(job: Mapping[str, Any], key: str) -> str:
        value = job["figures"].get(key)
        if not isinstance(value, int | float):
            return "-" if value is None else str(value)
        return f"{value:.2f}" if key == "latency_ms" else f"{value:.1%}"

    rows = [
        [str(job["job"]), *(each.get(key, "-") for key in swept), *(cell(job, key) for key in figures)]
        for job, each in zip(jobs, given, strict=True)
    ]
    columns = ["job", *swept, *figures]
    if any(job["error"] for job in jobs):
        columns.append("error")
        rows = [[*row, job["error"] or ""] for row, job in zip(rows, jobs, strict=True)]
    screen = console()
    screen.print(table("Sweep", columns, rows, right=["job", *(key for key in figures if key != "outcome")]))
    lines = [f"results: {found['folder']}/sweep.json, one folder per job beside it"]
    if found["optuna"]:
        lines.append(f"best, as Optuna has it: {found['optuna']} (chosen on the test inputs: check it on others)")
    screen.print(*lines, sep="\n", markup=False, soft_wrap=True)
