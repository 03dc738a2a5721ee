"""What a study leaves in its folder: findings.json, page.html, page.md and figures."""

import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from simprune.core.registry import Part
from simprune.core.store import write_whole
from simprune.report.study import markdown, render_study, save_study_figures
from simprune.studies.findings import Findings

SECTION = re.compile(r"^(Args|Returns|Raises):$", re.M)  # where the prose of a docstring ends


def described(part: Part) -> dict[str, Any]:
    """What the docstring of a study says: its question, and the paragraphs on protocol and cost.

    >>> from simprune.core.registry import find
    >>> described(find("study", "grounding"))["question"]
    'Does redundancy predict damage?'
    """
    prose = SECTION.split(inspect.cleandoc(part.make.__doc__ or ""))[0]
    question, *paragraphs = [" ".join(text.split()) for text in prose.strip().split("\n\n")]
    return {"name": part.name, "question": question, "paragraphs": paragraphs, "source": part.source}


def command(name: str, common: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """What to type for the same study; folders and images of other names have to be put in.

    >>> command("grounding", {"quick": True, "data": "a/images.npz"}, {"removals": 12})
    'simprune study recipe=grounding quick=true data=FOLDER removals=12'
    """
    typed = {key: value for key, value in common.items() if key != "folder"} | dict(own)
    if typed.get("data") is not None:
        typed["data"] = "FOLDER"
    return " ".join(["simprune study", f"recipe={name}", *(f"{key}={_typed(value)}" for key, value in typed.items())])


def _typed(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_typed, value))}]"
    if callable(value):
        return f"{value.__module__}:{value.__qualname__}"
    return value if isinstance(value, str) else json.dumps(value)


def written(findings: Findings, folder: Path, part: Part, typed: str, settings: Mapping[str, Any]) -> Findings:
    """Write the findings of a study; returns them with all that is known of the run."""
    stamp = {"simprune": version("simprune"), "date": datetime.now(UTC).isoformat(" ", "minutes"), "command": typed}
    about = {**described(part), **stamp, "settings": dict(settings), "folder": str(folder)}
    findings = replace(findings, about=about)
    content = json.loads(json.dumps(findings.to_dict(), default=str, allow_nan=False))
    save_study_figures(content, folder / "figures")
    write_whole(folder / "page.html", render_study(content))
    write_whole(folder / "page.md", markdown(content))
    write_whole(folder / "findings.json", json.dumps(content, indent=1))
    return findings
