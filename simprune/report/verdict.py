"""The verdict for people and for CI systems: one self-contained HTML page, and JUnit XML."""

from typing import Any
from xml.etree import ElementTree

from simprune.core.plain import finite

from . import charts
from .template import fill

EMPTY: dict[str, Any] = {
    "examples": [], "recall": [], "reliability": {}, "changes": [], "changed": 0, "confusion": [],
    "class_scores": False,
}  # fmt: skip


def render_verdict(verdict: dict[str, Any], evidence: dict[str, Any]) -> str:
    """The page as text: a pure function of `Verdict.to_dict()` and `Evidence.to_dict()`. Every text is escaped.

    >>> page = render_verdict({"outcome": "pass", "count": 0, "gates": [], "notes": ["<b>"]}, {})
    >>> "&lt;b&gt;" in page, "<script" in page
    (True, False)
    """
    gates = [
        gate
        | {"name": label(gate)}
        | {key: None if isinstance(gate[key], str) else gate[key] for key in ("value", "lower", "upper")}
        for gate in verdict["gates"]  # JSON has an infinite bound as a text
    ]
    seen = EMPTY | evidence
    changed = [n for i, row in enumerate(seen["confusion"]) for j, n in enumerate(row) if i != j]
    lowest = min((row[f"{key}_bounds"][0] for row in seen["recall"] for key in ("before", "after")), default=0.0)
    return fill(
        "verdict.html",
        verdict=finite(verdict | {"gates": gates}),
        seen=seen,
        most_changed=max([1, *changed]),
        lowest=int(lowest * 10) / 10,
        reliability={
            name: charts.inline(charts.reliability(bins, name), f"reliability-{name}")
            for name, bins in seen["reliability"].items()
        },
    )


def label(gate: dict[str, Any]) -> str:
    """The measure, the output where the model has several, and the inputs where they are not clean."""
    name = gate["measure"] if gate.get("output") is None else f"{gate['measure']} of {gate['output']}"
    return name if gate.get("inputs", "clean") == "clean" else f"{name} on {gate['inputs']}"


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
        message = f"value {gate['value']}, bounds {gate['lower']} to {gate['upper']}, limit {gate['limit']}"
        kind = {"fail": "failure", "inconclusive": "error"}.get(gate["outcome"], "system-out")
        child = ElementTree.SubElement(case, kind, {} if kind == "system-out" else {"message": message})
        child.text = f"{message}: {gate['detail']}"
    return ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True).decode()
