"""The analysis page: one self-contained HTML file made from analysis.json. Its one script is fixed and hashed."""

import base64
import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any

from markupsafe import Markup

from . import _environment, maps, units


def render_analysis(data: dict[str, Any]) -> str:
    """The page as text: a pure function of the analysis. Every text is escaped; nothing is loaded."""
    folder = Path(__file__).parent
    script = (folder / "analysis.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = _environment()
    environment.filters |= {"count": units.count, "fixed": units.fixed}
    kinds = {each["measure"]: each["larger_is_more_similar"] for each in data["similarity"]}
    points = data["points"]
    shown = {"own": {"rows": points, "columns": points, "similarity": data["similarity"]}}
    if other := data.get("other"):
        shown["other"] = {"rows": points, "columns": other["points"], "similarity": other["similarity"]}
    return environment.get_template("analysis.html").render(
        data={"other": None, "channels": [], "unprunable": [], "model": "", "score": "", "simprune": ""} | data,
        map=maps,
        ids=list(kinds),
        similarities=[key for key, similar in kinds.items() if similar],
        distances=[key for key, similar in kinds.items() if not similar],
        headline=_headline(data),
        removable=sum(block["share"] or 0 for block in data["blocks"] if not block["inside"]),
        segments=len(set(data["segments"]["of"])),
        average=_average,
        own_style=Markup((folder / "analysis.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=Markup(f"sha256-{digest}"),
        embedded=Markup(json.dumps(shown).replace("<", "\\u003c")),
    )


def tables(data: dict[str, Any]) -> dict[str, str]:
    """CSV texts by file name: one matrix per measure, the blocks, the windows."""
    found = {}
    for each in data["similarity"]:
        rows = [[name, *row] for name, row in zip(data["points"], each["values"], strict=True)]
        found[f"similarity_{each['measure']}.csv"] = _csv([["layer", *data["points"]], *rows])
    ids = [each["measure"] for each in data["similarity"]]
    plain = [
        "name",
        "chain",
        "replace",
        "segment",
        "macs",
        "params",
        "share",
        "influence",
        "angle",
        "redundancy",
        "order",
    ]
    head = [*plain, *(f"{key}{suffix}" for key in ids for suffix in ("", "_low", "_high", "_chance"))]
    rows = [
        [block.get(key) for key in plain]
        + [block["similarity"][key].get(part) for key in ids for part in ("value", "low", "high", "null")]
        for block in data["blocks"]
    ]
    found["blocks.csv"] = _csv([head, *rows])
    windows = [
        [n, window["blocks"][first], window["blocks"][first + n - 1], value]
        for window in data["windows"]
        for n, row in enumerate(window["distances"], 1)
        for first, value in enumerate(row)
    ]
    found["windows.csv"] = _csv([["n", "first", "last", "angular_distance"], *windows])
    return found


def _csv(rows: list[list]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _average(values: list[list]) -> float | None:
    apart = [value for i, row in enumerate(values) for j, value in enumerate(row) if i != j and value is not None]
    return sum(apart) / len(apart) if apart else None


def _headline(data: dict[str, Any]) -> str:
    blocks = [block for block in data["blocks"] if block.get("order")]
    if not blocks:
        return f"{data.get('model') or 'The network'} has no block that can be removed whole."
    first = min(blocks, key=lambda block: block["order"])
    influence = "" if first["influence"] is None else f" (influence {units.number(first['influence'], 2)})"
    return (
        f"{len(blocks)} of {data.get('model') or 'the network'}\N{RIGHT SINGLE QUOTATION MARK}s blocks can be removed; "
        f"{first['name']} changes least for its cost{influence}."
    )
