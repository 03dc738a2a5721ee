"""Sweeps: the record of every job and the summary of all of them, as files, so that any launcher will do."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from simprune.cli.recipe.choices import as_typed
from simprune.core.checkpoint import refuse_other_settings
from simprune.core.names import did_you_mean
from simprune.core.plain import finite
from simprune.core.reading import read_text
from simprune.core.store import refuse_links, write_whole
from simprune.settings import Recipe

OBJECTIVES = {
    "compress": ("accuracy", "agreement", "macs", "params", "bytes", "latency_ms"),
    "plan": ("macs", "params", "bytes"),
}
RECORD = "job.json"  # in the folder of every job that has ended
ENDED = (0, 1, 3)  # codes of jobs that are not run again when a sweep goes on
CALLBACK = "+hydra.callbacks.simprune._target_=simprune.cli.recipe.sweep.Summary"


def check_objective(recipe: Recipe, command: str) -> None:
    """ValueError unless the command measures what the recipe wants optimised."""
    known = OBJECTIVES.get(command, ())
    if recipe.objective is None or recipe.objective in known:
        return
    if not known:
        raise ValueError(f"objective: {command} has none; leave it out, or sweep {' or '.join(OBJECTIVES)}")
    raise ValueError(f"objective: unknown {recipe.objective!r}; {did_you_mean(recipe.objective, known)}")


def objective(recipe: Recipe, figures: Mapping[str, Any]) -> float | None:
    """The number that an optimising sweeper gets, None without a model; ValueError when it was not measured."""
    if recipe.objective is None or recipe.objective not in figures:
        return None
    value = figures[recipe.objective]
    if value is None:
        raise ValueError(f"objective: {recipe.objective} was not measured; it needs test data with classes and labels")
    return float(value)


def write_job(out: Path, code: int, error: str | None, figures: Mapping[str, Any], objective: float | None) -> None:
    """Write the record of a sweep's job, job.json, to its folder; nothing for a run of its own."""
    run = HydraConfig.get()
    if run.mode != RunMode.MULTIRUN:
        return
    overrides = [as_typed(override) for override in run.overrides.task]
    record = {"job": run.job.num, "overrides": overrides, "code": code, "error": error, "objective": objective}
    _write(out / RECORD, record | {"figures": finite(dict(figures)), "folder": str(out)})


def resumed(folder: str) -> str:
    """The folder of an interrupted sweep; FileNotFoundError for another one, ValueError for links in it."""
    if not any(Path(folder).glob("[0-9]*")):
        raise FileNotFoundError(f"no sweep to go on with in {folder}: it has no folders of jobs, such as 0")
    refuse_links(*Path(folder).iterdir())
    return folder


def finished(out: Path, recipe: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of a job that has ended without an error before; None where it has not.

    Args:
        out: the job's folder.
        recipe: of the job, resolved; ValueError where it was another one.
    """
    if not (out / RECORD).is_file():
        return None
    record = json.loads(read_text(out / RECORD))
    if record["code"] not in ENDED:
        return None
    stored = yaml.safe_load(read_text(out / "recipe.yaml"))
    refuse_other_settings(out, stored, json.loads(json.dumps(recipe)))
    return record


def write_summary(summary: Mapping[str, Any]) -> None:
    """Write what `Summary` gathered to sweep.json; nothing where no job has a record."""
    if summary["jobs"]:
        _write(Path(summary["folder"]) / "sweep.json", summary)


class Summary(Callback):
    """Knows which folders a run makes, and gathers the jobs' records when all are done.

    Hydra calls it in the process that starts the jobs.
    """

    finished: ClassVar[list[dict[str, Any]]] = []  # the summary of the sweep, when it has ended
    missing: ClassVar[list[Path]] = []  # folders of the run that were not there before it, the innermost first

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(os.path.abspath(str(config.hydra.run.dir)))
        Summary.missing[:] = [path for path in (folder, *folder.parents) if not path.exists()]

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        jobs = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob(f"*/{RECORD}")]
        optuna = folder / "optimization_results.yaml"
        content = {
            "command": str(config.hydra.job.name),
            "recipe": str(config.hydra.job.config_name),
            "objective": config.get("objective"),
            "jobs": sorted(jobs, key=lambda job: job["job"]),
            "optuna": str(optuna) if optuna.is_file() else None,
            "folder": str(folder),
        }
        Summary.finished.append(content)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
