"""The verdict for people and for CI systems: one self-contained HTML page, and JUnit XML."""

from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

from simprune.core.store import finite

from . import OUTCOMES, _environment, _verdict_sentence, units
from .figures import picture, tag


def render_verdict(verdict: dict[str, Any], evidence: dict[str, Any]) -> str:
    """The page as text: a pure function of `Verdict.to_dict()` and `Evidence.to_dict()`. Every text is escaped.

    >>> page = render_verdict({"outcome": "pass", "count": 0, "gates": [], "notes": ["<b>"]}, {})
    >>> "&lt;b&gt;" in page, "<script" in page
    (True, False)
    """
    gates = [
        gate | {"name": label(gate)} | {key: _number(gate[key]) for key in ("value", "lower", "upper")}
        for gate in verdict["gates"]
    ]
    seen = {
        "examples": [],
        "recall": [],
        "reliability": {},
        "changes": [],
        "changed": 0,
        "confusion": [],
        "class_scores": False,
    } | evidence
    return (
        _environment()
        .get_template("verdict.html")
        .render(
            verdict=finite(verdict | {"gates": gates}),
            sentence=_verdict_sentence(verdict),
            seen=seen,
            confusion=confusion,
            recall=recall,
            reliability=reliability,
            tally={outcome: sum(gate["outcome"] == outcome for gate in gates) for outcome in OUTCOMES},
        )
    )


def label(gate: dict[str, Any]) -> str:
    """The measure, and the inputs where they are not clean."""
    return gate["measure"] if gate.get("inputs", "clean") == "clean" else f"{gate['measure']} on {gate['inputs']}"


def junit(verdict: dict[str, Any]) -> str:
    """The gates as tests: a failed one is a failure, an undecided one an error, since neither may be deployed.

    >>> print(junit({"outcome": "pass", "count": 9, "gates": [], "notes": []}))
    <?xml version='1.0' encoding='utf-8'?>
    <testsuite name="simprune validate" tests="0" failures="0" errors="0" />
    """
    gates = verdict["gates"]
    outcomes = [gate["outcome"] for gate in gates]
    counts = {"tests": len(gates), "failures": outcomes.count("fail"), "errors": outcomes.count("inconclusive")}
    attributes = {"name": "simprune validate"} | {key: str(value) for key, value in counts.items()}
    suite = ElementTree.Element("testsuite", attributes)
    for gate in gates:
        case = ElementTree.SubElement(suite, "testcase", name=label(gate), classname="simprune.validate")
        said = f"value {gate['value']}, bounds {gate['lower']} to {gate['upper']}, limit {gate['limit']}"
        kind = {"fail": "failure", "inconclusive": "error"}.get(gate["outcome"], "system-out")
        child = ElementTree.SubElement(case, kind, {} if kind == "system-out" else {"message": said})
        child.text = f"{said}: {gate['detail']}"
    return ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True).decode()


def _number(value: float | str | None) -> float | None:
    """None for what JSON has as a text, an infinite bound."""
    return None if isinstance(value, str) else value


def confusion(matrix: list[list[int]]) -> Markup:
    """Answers of the original (rows) and of the pruned model (columns); what changed is tinted by its count."""
    size, cell, left, top = len(matrix), 34, 34, 26
    largest = max([1, *(n for i, row in enumerate(matrix) for j, n in enumerate(row) if i != j)])
    marks = []
    for i, row in enumerate(matrix):
        marks.append(tag("text", i, x=left - 8, y=top + (i + 0.5) * cell + 4, class_="end small"))
        marks.append(tag("text", i, x=left + (i + 0.5) * cell, y=top - 8, class_="middle small"))
        for j, count in enumerate(row):
            x, y, changed = left + j * cell, top + i * cell, i != j and count > 0
            title = tag("title", f"{i} before, {j} after: {count}")
            place = {"x": x + 1, "y": y + 1, "width": cell - 2, "height": cell - 2, "rx": 3}
            marks.append(tag("rect", title, **place, class_="track"))
            if changed:
                marks.append(tag("rect", title, **place, class_="removed", fill_opacity=0.25 + 0.6 * count / largest))
            if count:
                marks.append(tag("text", count, x=x + cell / 2, y=y + cell / 2 + 4, class_="value"))
    described = f"Answers of both models, {size} classes"
    return picture(left + size * cell, top + size * cell, described, *marks)


def recall(rows: list[dict[str, Any]]) -> Markup:
    """Recall of every class before (hollow) and after (filled), each with its 95 % interval."""
    left, width, pitch = 110, 420, 34
    bottom = 8 + pitch * len(rows)
    lowest = min((row[f"{key}_bounds"][0] for row in rows for key in ("before", "after")), default=0.0)
    low = max(0.0, int(lowest * 10) / 10)

    def at(value: float) -> float:
        return left + (value - low) / ((1 - low) or 1.0) * width

    marks = []
    for step in range(5):
        tick = low + (1 - low) * step / 4
        marks.append(tag("line", x1=at(tick), x2=at(tick), y1=4, y2=bottom, class_="grid"))
        marks.append(tag("text", units.percent(tick, 0), x=at(tick), y=bottom + 17, class_="middle small"))
    for i, row in enumerate(rows):
        y = 8 + pitch * (i + 0.5)
        name = f"class {row['class']} ({row['count']})"
        marks.append(tag("text", name, x=left - 12, y=y + 4, class_="end small"))
        for key, shift, kind in (("before", -6, "control"), ("after", 6, "final")):
            ends = row[f"{key}_bounds"]
            said = f"{name} {key}: {units.percent(row[key])}, {units.percent(ends[0])} to {units.percent(ends[1])}"
            stem = "stem control" if kind == "control" else "stem"
            marks.append(tag("line", x1=at(ends[0]), x2=at(ends[1]), y1=y + shift, y2=y + shift, class_=stem))
            marks.append(tag("circle", tag("title", said), cx=at(row[key]), cy=y + shift, r=4.5, class_=kind))
        change = units.points(row["after"] - row["before"])
        marks.append(tag("text", change, x=left + width + 14, y=y + 4, class_="small"))
    return picture(left + width + 80, bottom + 24, "Recall of every class before and after", *marks)


def reliability(bins: list[dict[str, Any]], name: str) -> Markup:
    """Accuracy by confidence with 95 % intervals; the dashed diagonal is perfect calibration."""
    left, top, side = 44, 10, 260

    def x(value: float) -> float:
        return left + value * side

    def y(value: float) -> float:
        return top + (1 - value) * side

    marks = [tag("line", x1=x(0), y1=y(0), x2=x(1), y2=y(1), class_="reference")]
    for tick in (0.0, 0.5, 1.0):
        marks.append(tag("line", x1=x(0), x2=x(1), y1=y(tick), y2=y(tick), class_="grid"))
        marks.append(tag("text", units.percent(tick, 0), x=left - 8, y=y(tick) + 4, class_="end small"))
        marks.append(tag("text", units.percent(tick, 0), x=x(tick), y=top + side + 18, class_="middle small"))
    most = max((each["count"] for each in bins), default=1)
    for each in bins:
        said = f"confidence {units.percent(each['confidence'])}, right {units.percent(each['accuracy'])}"
        at, ends = x(each["confidence"]), each["bounds"]
        marks.append(tag("line", x1=at, x2=at, y1=y(ends[0]), y2=y(ends[1]), class_="stem"))
        title = tag("title", f"{said}, {each['count']} inputs")
        radius = 3 + 6 * (each["count"] / most) ** 0.5
        marks.append(tag("circle", title, cx=at, cy=y(each["accuracy"]), r=radius, class_="final"))
    return picture(left + side + 20, top + side + 26, f"Accuracy by confidence, {name} model", *marks)
