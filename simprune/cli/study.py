"""`simprune study`: one study, with its options as they are typed; it needs no Hydra."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simprune.cli.console import show, table
from simprune.cli.flags import split
from simprune.core.names import did_you_mean, importable
from simprune.core.progress import reporting
from simprune.core.reading import read_text, read_yaml
from simprune.core.registry import parts
from simprune.report.study import cell_text
from simprune.studies import Findings, study

LOG = "simprune.log"


def run(args: Sequence[str]) -> int:
    """Run the study that the arguments name, print what it concludes, and return the exit code."""
    name, options = choice(args)
    folder = Path(options.get("folder") or "outputs/study")
    importable(Path.cwd())
    with reporting(folder / LOG):
        findings = study(name, **options)
    _show(findings)
    return 0


def choice(args: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The name of a study and its options; what is typed wins over what a recipe file says.

    Raises:
        FileNotFoundError: for a recipe file that is not there.
        ValueError: for no recipe, a flag, or a file of another content.

    >>> choice(["recipe=grounding", "quick=true", "data=images.npz"])
    ('grounding', {'quick': True, 'data': 'images.npz'})
    """
    overrides, flags, recipe = split(list(args))
    if flags:
        raise ValueError(f"study takes no flags; got {flags[0]}")
    if recipe is None:
        raise ValueError(f"name a study: recipe=NAME or recipe=FILE.yaml; there are {', '.join(parts('study'))}")
    stated: dict[str, Any] = {"study": recipe}
    if recipe.endswith(".yaml"):
        content = read_yaml(read_text(Path(recipe)), recipe)
        if not isinstance(content, Mapping) or not isinstance(content.get("study"), str):
            raise ValueError(f"{recipe}: expected study: NAME, and its options")
        stated = dict(content)
        importable(Path(recipe).resolve().parent)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"cannot read {override!r}: expected key=value")
        stated[key] = read_yaml(value, key)
    name = stated.pop("study")
    if name not in parts("study"):
        raise ValueError(f"no study {name!r}; {did_you_mean(name, parts('study'))}")
    return name, stated


def _show(findings: Findings) -> None:
    """What a study concludes, its tables, and where its pages are."""
    for content in findings.tables:
        rows = [[cell_text(cell) for cell in row] for row in content.rows]
        show(table(content.title, content.columns, rows, right=content.columns[1:]))
    show(
        *findings.conclusions,
        *(f"control: {sentence}" for sentence in findings.controls),
        *(f"limit: {sentence}" for sentence in findings.limits),
        f"page: {findings.about['folder']}/page.html",
        f"data: {findings.about['folder']}/findings.json",
    )
