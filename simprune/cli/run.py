"""One command, once or once per job of a sweep: a Hydra application whose primary config is the recipe."""

import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import hydra
from hydra.core.hydra_config import HydraConfig

from simprune.cli import recipe as recipes
from simprune.cli.commands import COMMANDS, UNFINISHED, Job
from simprune.cli.console import show_sweep
from simprune.cli.errors import one_line, report
from simprune.cli.flags import split
from simprune.cli.recipe import sweep
from simprune.core.checkpoint import SETTINGS
from simprune.core.names import importable
from simprune.settings import Settings


def run(command: str, args: list[str]) -> int:
    """Hand one command over to Hydra, which composes the recipe and calls `work` once, or once per job of a sweep."""
    overrides, flags, name = split(args)
    given = {key: value for key, _, value in (override.partition("=") for override in overrides)}
    if name is not None:
        folder, config = recipes.locate(name)
    elif command == "validate" and "bundle" in given:
        folder, config = None, recipes.register_bundle_recipe(given["bundle"])
        # a resolved recipe has no groups to override: another check set is added, which replaces its gates
        overrides = [f"+{each}" if each.partition("=")[0] in recipes.GROUPS else each for each in overrides]
    else:
        known = ", ".join(recipes.options(recipes.builtin("recipes")))
        raise ValueError(f"name a recipe: recipe=NAME or recipe=FILE.yaml; built-in: {known}")
    if "resume" in given:
        quoted = _resumed(given["resume"], command, flags)
        overrides = [each for each in overrides if not each.startswith("resume=")]
        overrides += [f"resume={quoted}", f"hydra.run.dir={quoted}"]
    many = "--frontier" in flags
    flags = [each for each in flags if each != "--frontier"]
    if many and command != "plan":
        raise ValueError(f"--frontier is for `simprune plan`; {command} does not take it")
    codes = []

    def work(config: Any) -> float | None:
        if folder is not None:
            importable(folder)  # functions that a recipe names may stand beside it
        config = recipes.settled(config, HydraConfig.get().overrides.task, folder)
        out = Path(HydraConfig.get().runtime.output_dir)
        if many and recipes.several(config.budget) is None:
            config.budget = list(Settings().budgets)
        figures, objective = {}, None
        try:
            settings = recipes.settings(config, command)
            sweep.check_objective(settings, command)
            built = recipes.objects(settings, trusted=folder is not None)
            code = COMMANDS[command](Job(settings, *built, recipes.resolved(config), out, figures))
            objective = sweep.value(settings, figures)
        except Exception as error:
            code, reason = report(error), one_line(error) or type(error).__name__
        else:
            reason = None
        finally:
            _remove_if_empty(out)
        sweep.leave(out, code, reason, figures, objective)
        codes.append(code)
        return objective

    own = [f"hydra.job.name={command}", "hydra/job_logging=none", sweep.CALLBACK]
    path = str(folder) if folder else None
    argv = [f"simprune {command}", *own, *recipes.rewritten(overrides), *flags]
    sweep.Summary.forget()
    # with HYDRA_FULL_ERROR Hydra passes errors on; otherwise it prints them itself and exits with 1
    with patch.object(sys, "argv", argv), patch.dict(os.environ, {"HYDRA_FULL_ERROR": "1"}), recipes.shadowing():
        try:
            hydra.main(config_path=path, config_name=config, version_base=recipes.VERSION_BASE)(work)()
        except Exception:
            if not codes or not set(codes) <= {2, 70}:
                raise
            # every job has said what was wrong; a sweeper that optimises has nothing to choose from and gives up
    if sweep.Summary.found is not None:  # jobs may have run in other processes
        show_sweep(sweep.Summary.found)
        codes = [job["code"] for job in sweep.Summary.found["jobs"]]
    return next((code for code in (70, 2, 1, 3) if code in codes), 0)


RESUMABLE = {"compress": "search/state.json", "analyze": f"{UNFINISHED}/{SETTINGS}"}


def _resumed(folder: str, command: str, flags: list[str]) -> str:
    """The folder of an interrupted run, quoted for Hydra."""
    if command not in RESUMABLE or {"-m", "--multirun"} & set(flags):
        raise ValueError(
            "resume goes on with one `simprune compress budget=smallest` or `simprune analyze`; leave it out here"
        )
    if not (Path(folder) / RESUMABLE[command]).is_file():
        what = "search" if command == "compress" else "analysis"
        raise FileNotFoundError(f"no {what} to go on with in {folder}: it has no {RESUMABLE[command]}")
    escaped = folder.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _remove_if_empty(folder: Path) -> None:
    """Leave no trace of a run that wrote nothing: its folder and the folders made for it."""
    while folder != Path.cwd() and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
