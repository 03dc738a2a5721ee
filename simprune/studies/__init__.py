"""Studies: which measure to trust, and what similarity says about pruning, as experiments that anybody can run.

A study is one file here: a function, registered as "study", whose docstring states the question, the protocol and the
cost, and which gets a `Run` and returns `Findings`. It uses the public functions of simprune alone.
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from simprune.core import registry
from simprune.core.alone import one_at_a_time
from simprune.core.names import did_you_mean
from simprune.core.options import takes_options
from simprune.core.progress import say
from simprune.settings import Study
from simprune.studies.checking import check_size, check_study_options
from simprune.studies.code import code_of_study
from simprune.studies.findings import Figure, Findings, Table
from simprune.studies.frame import Run
from simprune.studies.writing import command, written

__all__ = ["Figure", "Findings", "Run", "Table", "study"]


class _ByName:
    """A function of a study's name whose attributes are the studies: `study("grounding")` is `study.grounding()`."""

    def __init__(self, function: Callable[..., Findings]) -> None:
        self._function = function
        functools.update_wrapper(self, function)

    def __call__(self, name: str, **options: Any) -> Findings:
        return self._function(name, **options)

    def __getattr__(self, name: str) -> Callable[..., Findings]:
        if name.startswith("_"):
            raise AttributeError(name)
        known = registry.parts("study")
        if name not in known:
            raise AttributeError(f"no study named {name!r}; {did_you_mean(name, known)}")
        return functools.partial(self._function, name)

    def __dir__(self) -> list[str]:
        return [*registry.parts("study")]


@_ByName
@one_at_a_time
@takes_options(Study)
def study(name: str, **options: Any) -> Findings:
    """Run a study, and write its findings, pages and figures; `study.NAME(...)` is `study(NAME, ...)`.

    Steps that are finished are stored, so that the same call goes on after an interruption. Steps that other code has
    computed, such as another version of simprune, are not used; they are computed again.

    Args:
        name: of the study (`simprune list studies`).
        options: of this study alone; they differ from study to study.
        {options}

    Returns:
        The findings: conclusions, tables, figures, controls, limits, and in `about` where they were written.

    Raises:
        KeyError: for an unknown study.
        ValueError: for an unknown or wrong option, and for images that cannot be read.
        FileNotFoundError: for images that are not there.
    """
    part = registry.find("study", name)
    common = {key: options.pop(key) for key in [*options] if key in Study.__dataclass_fields__}
    for key in ("data", "folder"):
        if isinstance(common.get(key), os.PathLike):
            common[key] = os.fspath(common[key])
    shared = Study(**common)
    own = (dict(part.facts.get("quick", {})) if shared.quick else {}) | options
    registry.check_options(part, own)
    if shared.models and (unused := {"architecture", "architectures"} & {*options}):
        raise ValueError(f"{min(unused)} has no effect: your own networks are studied; leave it or models out")
    own = part.options | own
    check_study_options(part, own, bool(shared.models))
    parent = Path(shared.folder)
    folder = parent / (f"{name}-quick" if shared.quick else name)
    run = Run(
        folder, parent / "networks", shared.quick, shared.data, shared.size, shared.models, shared.training,
        shared.seed, code_of_study(part.make),
    )  # fmt: skip
    settings = dict(run.described) | own  # reads the images, whose errors come before any work, as those of models
    if not run.own:
        check_size(run.images)
    if not run.steps.is_dir() and run.steps.parent.is_dir():
        say(f"the steps in {run.steps.parent} are of other code; they are computed again")
    findings = part.make(run, **own)
    return written(findings, folder, part, command(name, common, options), settings)
