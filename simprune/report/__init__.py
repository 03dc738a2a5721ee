"""The report page: one self-contained HTML file made from the JSON report, without scripts or network."""

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from simprune.core.store import finite, settings

from . import figures, units
from .search import ladder

OUTCOMES = {"pass": "Passed", "fail": "Failed", "inconclusive": "Inconclusive", "unchecked": "Not checked"}
COSTS = {"macs": "Multiply-adds", "params": "Parameters", "bytes": "Bytes", "latency_ms": "Latency"}
FILTERS = ("number", "percent", "points", "count", "milliseconds")
FORMATS = {
    "macs": units.count, "params": units.count, "bytes": units.size, "latency_ms": units.milliseconds,
    "accuracy": units.percent, "agreement": units.percent,
}  # fmt: skip
FOLLOWS = 0.1  # by how much shares of latency and of macs may differ before that is said
EMPTY = {
    "simprune": "", "seed": None, "settings": {}, "environment": {}, "stages": [], "redundancy": {},
    "plan": {}, "reconstruction": [], "finetuning": [], "verdict": None, "notes": [],
}  # fmt: skip


def render(report: dict) -> str:
    """The report as one HTML page: a pure function of `Result.report` (the content of report.json).

    Parts that were not measured (None, NaN or left out) are shown as a dash or left out. Every text is
    escaped; the page holds no script and forbids loading anything.

    >>> page = render({"simprune": "0.1.0", "seed": 0, "notes": ["no <test> set"]})
    >>> "no &lt;test&gt; set" in page, "<script" in page
    (True, False)
    """
    report = EMPTY | {key: value for key, value in finite(report).items() if value is not None}
    redundancy, edits = report["redundancy"], report["plan"].get("edits") or []
    stages = report["stages"]
    original = next((stage for stage in stages if stage["name"] == "original"), {})
    compressed = [stage for stage in stages if stage["name"] not in ("original", "random control")]
    final = compressed[-1] if compressed else {}
    given_up = "search" in report and report["search"]["chosen"] is None
    entries = redundancy.get("entries") or []
    page = _environment().get_template("page.html")
    return page.render(
        report=report,
        original=original,
        final=final,
        kept=[(label, _ratio(final, original, key), _show(final, key)) for key, label in COSTS.items()],
        headline="No smaller model passed the checks." if given_up else _headline(original, final, edits),
        outcome=(report["verdict"] or {}).get("outcome", "unchecked"),
        verdict_sentence=_verdict_sentence(report["verdict"]),
        sluggish=_sluggish(original, final),
        expected=report["plan"].get("expected") or {},
        finalists=(report["plan"].get("planner") or {}).get("finalists") or [],
        edits_left=any(edit.get("left") is not None for edit in edits),
        removed_blocks=[edit for edit in edits if edit["remove"] == "block"],
        removed_channels={edit["name"]: edit for edit in edits if edit["remove"] != "block"},
        blocks=[entry for entry in entries if entry["kind"] == "block"],
        channels=[entry for entry in entries if entry["kind"] != "block"],
        similarity=redundancy.get("similarity") or {},
        unprunable=redundancy.get("unprunable") or [],
        longest_error=max([row[k] or 0 for row in report["reconstruction"] for k in ("before", "after")] + [0]),
    )


def _environment() -> Environment:
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {name: getattr(units, name) for name in FILTERS}
    environment.filters["settings"] = settings
    environment.filters["name"] = _breakable
    environment.filters["measured"] = lambda value: value if isinstance(value, str) else units.number(value)
    environment.globals |= {
        "fig": figures, "ratio": _ratio, "difference": _difference, "show": _show, "around": _around,
        "bounds": units.bounds, "ladder": ladder,
        "OUTCOMES": OUTCOMES, "COSTS": COSTS,
        "style": Markup((folder / "style.css").read_text(encoding="utf-8")),
    }  # fmt: skip
    return environment


def _breakable(name: str) -> Markup:
    """A module's name that wraps after its dots."""
    return Markup("<wbr>").join(part for part in re.findall(r"[^.]*\.|[^.]+", name))


def _around(name: str, removed_blocks: list) -> str | None:
    """The removed block that takes this layer with it."""
    return next((edit["name"] for edit in removed_blocks if name.startswith(f"{edit['name']}.")), None)


def _show(stage: dict, key: str) -> str:
    return FORMATS[key](stage.get(key))


def _ratio(stage: dict, original: dict, key: str) -> float | None:
    value, whole = stage.get(key), original.get(key)
    return value / whole if value is not None and whole else None


def _sluggish(original: dict, final: dict) -> bool:
    """Whether the share of the latency that is left is far from that of the macs."""
    time, macs = (_ratio(final, original, key) for key in ("latency_ms", "macs"))
    return time is not None and macs is not None and abs(time - macs) > FOLLOWS


def _difference(stage: dict, original: dict, key: str) -> float | None:
    value, whole = stage.get(key), original.get(key)
    return value - whole if value is not None and whole is not None else None


def _headline(original: dict, final: dict, edits: list) -> str:
    """The outcome in one sentence."""
    kept = [
        f"{units.percent(share, 0)} of the {word}"
        for key, word in (("macs", "multiply-adds"), ("params", "parameters"))
        if (share := _ratio(final, original, key)) is not None
    ]
    if not kept:
        return f"{len(edits)} edit{'s' * (len(edits) != 1)} planned; costs were not measured."
    before, after = original.get("accuracy"), final.get("accuracy")
    if before is None or after is None:
        return f"Keeps {' and '.join(kept)}; accuracy was not measured."
    accuracy = f"accuracy {units.percent(before)} before, {units.percent(after)} after"
    return f"Keeps {' and '.join(kept)}; {accuracy}."


def _verdict_sentence(verdict: dict | None) -> str:
    """What the gates say, with the number of test inputs they rest on."""
    if verdict is None or not verdict["gates"]:
        return "No gate was checked, so nothing is claimed about the behaviour."
    gates, on = verdict["gates"], f"{verdict['count']} test inputs"
    undecided = sum(gate["outcome"] == "inconclusive" for gate in gates)
    failed = sum(gate["outcome"] == "fail" for gate in gates)
    if failed:
        return f"{failed} of {len(gates)} gates failed on {on}."
    if undecided:
        return f"{undecided} of {len(gates)} gates cannot be decided with {on}."
    return f"Every gate holds on {on} ({len(gates)} checked)."
