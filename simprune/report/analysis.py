"""The analysis page: one self-contained HTML file, a function of analysis.json. Its one script is fixed and hashed."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from markupsafe import Markup

from . import charts, units
from .template import fill, text


def render_analysis(data: dict[str, Any]) -> str:
    """The page as text: a pure function of the analysis. Every text is escaped; nothing is loaded."""
    script = text("analysis.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    points = data["points"]
    shown = {"own": {"rows": points, "columns": points, "similarity": data["similarity"]}}
    if other := data.get("other"):
        shown["other"] = {"rows": points, "columns": other["points"], "similarity": other["similarity"]}
    groups = {"similarity": "own", "other": "other"}  # of maps that the script links
    drawn = _charts(data)
    return fill(
        "analysis.html",
        "analysis.css",
        data={"other": None, "channels": [], "unprunable": [], "model": "", "score": "", "simprune": ""} | data,
        charts={key: charts.inline(chart, key, groups.get(key.split("_")[0], "")) for key, chart in drawn.items()},
        windows=_windows(data),
        halves=_halves(data),
        headline=_headline(data),
        average=_average,
        script=Markup(script),
        script_hash=Markup(f"sha256-{digest}"),
        embedded=Markup(json.dumps(shown).replace("<", "\\u003c")),
    )


def save_figures(data: dict[str, Any], folder: Path) -> list[Path]:
    """Write every figure of an analysis as .svg and .png (300 dpi) and return the paths."""
    return charts.save(_charts(data), folder)


def _charts(data: dict[str, Any]) -> dict[str, charts.Chart]:
    """Every chart of the page by the name that its file has."""
    points, other = data["points"], data.get("other") or {"similarity": [], "points": []}
    similar = {entry["measure"]: entry["larger_is_more_similar"] for entry in data["similarity"]}
    drawn = {}
    maps: list[tuple[str, list, list, dict[str, Any]]] = [
        ("similarity", data["similarity"], points, {"segments": data["segments"]["of"]}),
        ("other", other["similarity"], other["points"], {"across": "layer of the other"}),
    ]
    for prefix, entries, columns, options in maps:
        for entry in entries:
            name = entry["measure"]
            chart = charts.similarity_map(entry["values"], points, columns, name, reverse=not similar[name], **options)
            drawn[f"{prefix}_{name}"] = chart
    offset = 0
    for title, kind in (("similarity", True), ("distance", False)):
        ids = [name for name, larger in similar.items() if larger == kind]
        if data["blocks"] and ids:
            drawn[f"profile_{title}"] = charts.profile(data["blocks"], ids, title, offset)
        offset += len(ids)
    return drawn | {name: charts.window_map(window) for name, window in _windows(data).items()}


def _windows(data: dict[str, Any]) -> dict[str, dict]:
    """The windows that hold more than one block, by the name of their chart; the longest first."""
    several = [window for window in data["windows"] if len(window["blocks"]) > 1]
    several.sort(key=lambda window: -len(window["blocks"]))
    return {f"windows_{number}" if number > 1 else "windows": window for number, window in enumerate(several, 1)}


def tables(data: dict[str, Any]) -> dict[str, str]:
    """CSV texts by file name: one matrix per measure, the blocks, the windows."""
    files = {}
    for entry in data["similarity"]:
        rows = [[name, *row] for name, row in zip(data["points"], entry["values"], strict=True)]
        files[f"similarity_{entry['measure']}.csv"] = units.csv_text([["layer", *data["points"]], *rows])
    ids = [entry["measure"] for entry in data["similarity"]]
    plain = ["name", "chain", "replace", "segment", "macs", "params", "share"]
    plain += ["influence", "angle", "redundancy", "order"]
    head = [*plain, *(f"{key}{suffix}" for key in ids for suffix in ("", "_low", "_high", "_chance"))]
    rows = [
        [block.get(key) for key in plain]
        + [block["similarity"][key].get(part) for key in ids for part in ("value", "low", "high", "null")]
        for block in data["blocks"]
    ]
    files["blocks.csv"] = units.csv_text([head, *rows])
    windows = [
        [n, window["blocks"][first], window["blocks"][first + n - 1], value]
        for window in data["windows"]
        for n, row in enumerate(window["distances"], 1)
        for first, value in enumerate(row)
    ]
    files["windows.csv"] = units.csv_text([["n", "first", "last", "angular_distance"], *windows])
    return files


def _halves(data: dict[str, Any]) -> dict[str, int]:
    """How many of the blocks, and of the points that are compared, are those of halves of layers."""
    halves = {block["name"] for block in data["blocks"] if block.get("inside")}
    return {"blocks": len(halves), "points": sum(point.partition(":")[0] in halves for point in data["points"])}


def _average(values: list[list]) -> float | None:
    apart = [value for i, row in enumerate(values) for j, value in enumerate(row) if i != j and value is not None]
    return sum(apart) / len(apart) if apart else None


def _headline(data: dict[str, Any]) -> str:
    blocks = [block for block in data["blocks"] if block.get("order")]
    if not blocks:
        return f"{data.get('model') or 'The network'} has no block that can be removed whole."
    first = min(blocks, key=lambda block: block["order"])
    halves = _halves(data)["blocks"]
    whole = len(blocks) - halves
    counted = f"{whole}" if not halves else f"{whole} blocks and {halves} halves" if whole else f"{halves} halves"
    influence = "" if first["influence"] is None else f" (influence {units.number(first['influence'], 2)})"
    return (
        f"{counted} of {data.get('model') or 'the network'}\N{RIGHT SINGLE QUOTATION MARK}s blocks can be removed; "
        f"{first['name']} changes least for its cost{influence}."
    )
