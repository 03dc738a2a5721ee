"""One command, once or once per job of a sweep: a Hydra application whose primary config is the recipe."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from itertools import pairwise
from pathlib import Path
from shlex import join, quote
from typing import Any
from unittest.mock import patch

import hydra
from hydra.core.hydra_config import HydraConfig

from simprune.bundle import check_files
from simprune.cli import console
from simprune.cli.commands import COMMANDS, TRAINING, UNFINISHED, Job
from simprune.cli.errors import one_line, report
from simprune.cli.flags import split
from simprune.cli.folders import recipes
from simprune.cli.recipe import compose, sweep
from simprune.cli.recipe.choices import settled, shadowing
from simprune.cli.recipe.objects import objects
from simprune.cli.recipe.schema import settings, several
from simprune.cli.recipe.unread import refuse_unread
from simprune.core import processes
from simprune.core.checkpoint import SETTINGS
from simprune.core.names import importable
from simprune.core.progress import reporting
from simprune.core.store import FULL, refuse_links
from simprune.repair.training.state import STATE
from simprune.settings import REBUILT, Settings
from simprune.trace.later_runs import batches_in_errors

LOG = "simprune.log"  # beside the results: every step with its time
# Files that an interrupted run of a command leaves, by one of which it can go on.
RESUMABLE = {
    "compress": ("search/state.json", f"{TRAINING}/{STATE}/{SETTINGS}", f"{TRAINING}/*/{STATE}/{SETTINGS}"),
    "analyze": (f"{UNFINISHED}/{SETTINGS}",),
}


def run(command: str, args: list[str]) -> int:
    """Run one command; under torchrun in all processes together, of which the first prints and writes."""
    with processes.started(), _output() as elsewhere:
        try:
            return _run(command, args, elsewhere)
        except Exception as error:
            return report(error, processes.stop(error))


@contextmanager
def _output() -> Iterator[list[str]]:
    """Overrides of Hydra by which processes but the first write into a folder that goes away; they print nothing."""
    if processes.first():
        yield []
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w", encoding="utf-8") as nothing,
        redirect_stdout(nothing),
    ):
        yield [f"hydra.run.dir='{folder}'", "hydra.output_subdir=null"]


def _run(command: str, args: list[str], elsewhere: list[str]) -> int:
    """Hand one command over to Hydra, which composes the recipe and calls `work` once, or once per job of a sweep."""
    overrides, flags, name = split(args)
    values = {key: value for key, _, value in (override.partition("=") for override in overrides)}
    if name is not None:
        folder, config = compose.locate(name)
    elif command in REBUILT and "bundle" in values:
        check_files(values["bundle"])  # before anything in it is looked at
        folder, config = None, compose.register_bundle_recipe(values["bundle"])
    else:
        what = "give bundle=FOLDER, or name a recipe" if command in REBUILT else "name a recipe"
        raise ValueError(f"{what}: recipe=NAME or recipe=FILE.yaml; built-in: {', '.join(recipes())}")
    sweeping, going_on = bool({"-m", "--multirun"} & set(flags)), "resume" in values
    if processes.count() > 1 and sweeping:
        raise ValueError("a sweep starts processes of its own, by hydra/launcher; leave torchrun out, or -m")
    if going_on:
        resumed = _quoted(sweep.resumed(values["resume"]) if sweeping else _resumed(values["resume"], command))
        overrides = [text for text in overrides if not text.startswith("resume=")]
        overrides += [f"hydra.sweep.dir={resumed}"] if sweeping else [f"resume={resumed}", f"hydra.run.dir={resumed}"]
    if elsewhere:
        overrides = [text for text in overrides if not text.startswith("hydra.run.dir=")] + elsewhere
    along_frontier = "--frontier" in flags
    if along_frontier and command != "plan":
        raise ValueError(f"--frontier is for `simprune plan`; {command} does not take it")
    codes, full = [], list[OSError]()  # the latter: why the sweep cannot be written to

    def work(config: Any) -> float | None:
        """One job; returns the objective, for a sweeper that optimises."""
        if full:  # an earlier job could not be written, so this one could not either
            return None
        if folder is not None:
            importable(folder)  # functions that a recipe names may stand beside it
        config = settled(config, HydraConfig.get().overrides.task, folder)
        out = Path(HydraConfig.get().runtime.output_dir)
        if along_frontier and several(config.budget) is None:
            config.budget = list(Settings().budgets)
        if sweeping and going_on:
            done = sweep.finished(out, compose.resolved(config))
            if done is not None:
                codes.append(done["code"])
                return done["objective"]
            shutil.rmtree(out / "bundle", ignore_errors=True)  # of a job that was interrupted before its record
            config.resume = str(out) if _left(out, command) else None
        figures, objective, reason = {}, None, None
        try:
            recipe = settings(config, command)
            sweep.check_objective(recipe, command)
            refuse_unread(recipe, command, HydraConfig.get().overrides.task)
            with reporting(out / LOG) if processes.first() else nullcontext():
                parts = objects(recipe, trusted=folder is not None)
                job = Job(recipe, *parts, compose.resolved(config), out, figures, join(["simprune", command, *args]))
                with batches_in_errors({"model": job.model}, vars(job.data)):
                    code = COMMANDS[command](job)
            objective = sweep.objective(recipe, figures)
        except KeyboardInterrupt:
            if sweeping or _left(out, command):
                _say_how_to_go_on(out.parent if sweeping else out)
            raise
        except Exception as error:
            code, reason = report(error, processes.stop(error)), one_line(error) or type(error).__name__
            if sweeping and isinstance(error, OSError) and error.errno in FULL:
                full.append(error)
                return None
            if isinstance(error, OSError) and not sweeping and _left(out, command):  # such as a full disk
                _say_how_to_go_on(out)
        finally:
            if out.is_dir() and [path.name for path in out.iterdir()] == [LOG]:
                (out / LOG).unlink()  # nothing came of it
            _remove_if_empty(out)
        try:
            sweep.write_job(out, code, reason, figures, objective)
        except OSError as error:
            report(error, processes.stop(error))
            full.append(error)
            return None
        codes.append(code)
        return objective

    own = [f"hydra.job.name={command}", "hydra/job_logging=none", sweep.CALLBACK]
    path = str(folder) if folder else None
    more = [value for flag, value in pairwise(flags) if flag in ("--config-dir", "-cd")]
    changed = compose.fitted(overrides, folder, config, more)
    argv = [f"simprune {command}", *own, *changed, *(flag for flag in flags if flag != "--frontier")]
    sweep.Summary.finished.clear()
    sweep.Summary.missing.clear()
    # with HYDRA_FULL_ERROR Hydra passes errors on; otherwise it prints them itself and exits with 1
    with patch.object(sys, "argv", argv), patch.dict(os.environ, {"HYDRA_FULL_ERROR": "1"}), shadowing():
        try:
            hydra.main(config_path=path, config_name=config, version_base=compose.VERSION_BASE)(work)()
        except Exception:
            if not full and (not codes or not set(codes) <= {2, 70}):
                raise
            # every job has printed its error; a sweeper that optimises has nothing to choose from and gives up
    for summary in sweep.Summary.finished:  # one or none; jobs may have run in other processes
        swept = Path(summary["folder"])
        if full:
            _say_how_to_go_on(swept)
            return 2
        sweep.write_summary(summary)
        if any(not (job / sweep.RECORD).is_file() for job in swept.glob("[0-9]*")):  # lost with its process
            raise ValueError(f"not all jobs in {swept} have ended; to go on, add resume={swept} to the same command")
        best = summary["optuna"]
        console.show(
            console.sweep(summary),
            f"results: {summary['folder']}/sweep.json, one folder per job beside it",
            f"best, as Optuna has it: {best} (chosen on the test inputs: check it on others)" if best else None,
        )
        codes = [job["code"] for job in summary["jobs"]]
    return next((code for code in (70, 2, 1, 3) if code in codes), 0)


def _resumed(folder: str, command: str) -> str:
    """The folder of an interrupted run."""
    if command not in RESUMABLE:
        raise ValueError(
            "resume goes on with one `simprune compress` that searches or trains, one `simprune analyze`, or a sweep "
            "(-m); leave it out here"
        )
    if not _left(Path(folder), command):
        what = "search or training" if command == "compress" else "analysis"
        names = " and no ".join(RESUMABLE[command])
        raise FileNotFoundError(f"no {what} to go on with in {folder}: it has no {names}")
    refuse_links(*Path(folder).iterdir())
    return folder


def _say_how_to_go_on(folder: Path) -> None:
    if processes.first():
        print(f"simprune: to go on, add {quote(f'resume={folder}')} to the same command", file=sys.stderr)


def _quoted(folder: str) -> str:
    """A folder as Hydra's overrides take it, whatever characters its name has."""
    escaped = folder.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _left(folder: Path, command: str) -> bool:
    """Whether a run in this folder left what the command can go on with."""
    return any(any(folder.glob(name)) for name in RESUMABLE.get(command, ()))


def _remove_if_empty(folder: Path) -> None:
    """Remove the folder of a run that wrote nothing, and folders around it, if the run itself has made them."""
    for path in sweep.Summary.missing:
        if Path(os.path.abspath(folder)).is_relative_to(path) and path.is_dir() and not any(path.iterdir()):
            path.rmdir()
