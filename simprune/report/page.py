"""The report page: one self-contained HTML file, a function of the JSON report, without scripts or network."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from markupsafe import Markup

from simprune.core.plain import finite, settings

from . import charts, units
from .marks import ticks
from .template import fill

COSTS = {"macs": "Multiply-adds", "params": "Parameters", "bytes": "Bytes", "latency_ms": "Latency"}
FORMATS = {
    "macs": units.count, "params": units.count, "bytes": units.size, "latency_ms": units.milliseconds,
    "accuracy": units.percent, "agreement": units.percent,
}  # fmt: skip
FOLLOWS = 0.1  # shares of latency and of macs that differ by more are reported as such
EMPTY = {
    "simprune": "", "seed": None, "settings": {}, "environment": {}, "stages": [], "redundancy": {},
    "plan": {}, "reconstruction": [], "finetuning": [], "verdict": None, "notes": [],
}  # fmt: skip


def render(report: dict, recipe: Mapping[str, Any] | None = None, files: Sequence[str] = ()) -> str:
    """The report as one HTML page: a pure function of its arguments.

    Parts that were not measured (None, NaN or left out) are shown as a dash or left out. Every text is
    escaped; the page holds no script and forbids loading anything.

    Args:
        report: `Result.report`, the content of report.json.
        recipe: with which the run can be repeated.
        files: names of files beside the page, which it links.

    >>> page = render({"simprune": "0.1.0", "seed": 0, "notes": ["no <test> set"]})
    >>> "no &lt;test&gt; set" in page, "<script" in page
    (True, False)
    """
    report = EMPTY | {key: value for key, value in finite(report).items() if value is not None}
    edits, stages = report["plan"].get("edits") or [], report["stages"]
    original, control = (
        next((stage for stage in stages if stage["name"] == name), {}) for name in ("original", "random control")
    )
    compressed = [stage for stage in stages if stage["name"] not in ("original", "random control")]
    final = compressed[-1] if compressed else {}
    time, macs = (_ratio(final, original, key) for key in ("latency_ms", "macs"))
    given_up = "search" in report and report["search"]["chosen"] is None
    similarity = report["redundancy"].get("similarity") or {}
    removed_blocks = [edit for edit in edits if edit["remove"] == "block"]
    measured = [stage for stage in stages if stage.get("accuracy") is not None]
    repaired = [stage for stage in measured if stage["name"] != "pruned"]
    # a model before its repair may answer by chance: on an axis down to there nothing else could be told apart
    accuracies = [stage["accuracy"] for stage in (repaired if len(repaired) > 1 else measured)]
    span = ticks(min(accuracies), max(accuracies)) if accuracies else None
    return fill(
        "page.html",
        report=report,
        original=original,
        control=control,
        final=final,
        headline="No smaller model passed the checks." if given_up else _headline(original, final, edits),
        outcome=(report["verdict"] or {}).get("outcome", "unchecked"),
        sluggish=time is not None and macs is not None and _apart(time, macs, final, original),
        edits=edits,
        entries=report["redundancy"].get("entries") or [],
        removed_blocks=removed_blocks,
        removed_channels={edit["name"]: edit for edit in edits if edit["remove"] != "block"},
        similarity=similarity,
        map=_map(similarity, [edit["name"] for edit in removed_blocks]) if similarity.get("names") else None,
        curve=charts.inline(charts.training(report["finetuning"]), "training") if report["finetuning"] else None,
        span=(span[0], span[-1]) if span else None,
        brackets=_brackets(report["search"]["steps"]) if "search" in report else [],
        COSTS=COSTS,
        ratio=_ratio,
        difference=_difference,
        show=_show,
        around=_around,
        repairs={row["layer"]: row for row in report["reconstruction"]},
        layers_in_words=_layers_in_words,
        blocks_in_words=_blocks_in_words,
        facts=_facts(report),
        recipe=yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True) if recipe else "",
        files=[name for name in files if name != "report.html"],
    )


def _facts(report: dict) -> list[tuple[str, str]]:
    """Where and when it ran."""
    timing = report.get("timing") or {}
    names = {"name": "processor", "threads": "threads", "batch_size": "inputs of a timed call"}
    more = {said: str(timing[key]) for key, said in names.items() if key in timing}
    date = {"date": report["date"]} if report.get("date") else {}
    return [*date.items(), *(settings(report["environment"]) if report["environment"] else []), *more.items()]


def _layers_in_words(layers: list[dict]) -> str:
    """How many layers go, are narrower, or read less."""
    gone = sum(layer["width"][1] is None for layer in layers)
    narrower = sum(layer["width"][1] is not None and layer["width"][1] < layer["width"][0] for layer in layers)
    same = sum(layer["shape"][0] == layer["shape"][1] for layer in layers)
    rest = len(layers) - gone - narrower - same
    counts = {"go whole": gone, "get narrower": narrower, "only read less": rest, "stay as they are": same}
    return ", ".join(f"{number} {what}" for what, number in counts.items() if number)


def _blocks_in_words(edits: list[dict]) -> str:
    """How many blocks go; a half of one, whose output is no longer added to the stream, is no block."""
    halves = sum(edit.get("replace") == "zero" for edit in edits)
    blocks = len(edits) - halves
    parts = [f"{blocks} block{'s' * (blocks != 1)}"] if blocks else []
    parts += [f"{halves} half of a block" if halves == 1 else f"{halves} halves of blocks"] if halves else []
    return " and ".join(parts)


def _map(similarity: dict, gone: list[str]) -> Markup:
    names, measure = similarity["names"], similarity.get("measure") or "similarity"
    chart = charts.similarity_map(similarity["values"], names, names, measure, gone=gone, least=charts.NAMED_FROM + 1)
    return charts.inline(chart, "similarity")


def _brackets(steps: list[dict]) -> list[tuple[float, float]]:
    """What was open before every step of a search: shares of the cost between the smallest that passed and the largest
    that did not."""
    low, high, brackets = 0.0, 1.0, []
    for step in steps:
        brackets.append((low, high))
        low, high = (low, min(high, step["kept"] or 0.0)) if step["passed"] else (max(low, step["budget"]), high)
    return brackets


def _around(name: str, removed_blocks: list) -> str | None:
    """The removed block that takes this layer with it."""
    return next((edit["name"] for edit in removed_blocks if name.startswith(f"{edit['name']}.")), None)


def _show(stage: dict, key: str) -> str:
    return FORMATS[key](stage.get(key))


def _ratio(stage: dict, original: dict, key: str) -> float | None:
    value, whole = stage.get(key), original.get(key)
    return value / whole if value is not None and whole else None


def _difference(stage: dict, original: dict, key: str) -> float | None:
    value, whole = stage.get(key), original.get(key)
    return value - whole if value is not None and whole is not None else None


def _apart(time: float, macs: float, final: dict, original: dict) -> bool:
    """Whether the share of the time differs from that of the macs by more than chance and by what counts."""
    low, high = final.get("latency_spread_ms") or [final["latency_ms"]] * 2
    nearest = min(max(macs, low / original["latency_ms"]), high / original["latency_ms"])
    return abs(time - macs) > FOLLOWS and abs(nearest - macs) > FOLLOWS


def _headline(original: dict, final: dict, edits: list) -> str:
    """The outcome in one sentence."""
    shares = [
        f"{units.percent(share, 0)} of the {word}"
        for key, word in (("macs", "multiply-adds"), ("params", "parameters"))
        if (share := _ratio(final, original, key)) is not None
    ]
    if not shares:
        return f"{len(edits)} edit{'s' * (len(edits) != 1)} planned; costs were not measured."
    before, after = original.get("accuracy"), final.get("accuracy")
    if before is None or after is None:
        return f"Keeps {' and '.join(shares)}; accuracy was not measured."
    accuracy = f"accuracy {units.percent(before)} before, {units.percent(after)} after"
    return f"Keeps {' and '.join(shares)}; {accuracy}."
