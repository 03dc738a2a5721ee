"""Sweeps: what every job leaves behind, and the summary of all of them. By files, so that any launcher will do."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from simprune.cli.recipe.choices import as_typed
from simprune.cli.recipe.schema import Recipe
from simprune.core.names import did_you_mean
from simprune.core.plain import finite
from simprune.core.store import write_whole

JOB, SWEEP, OPTUNA = "job.json", "sweep.json", "optimization_results.yaml"
OBJECTIVES = {
    "compress": ("accuracy", "agreement", "macs", "params", "bytes", "latency_ms"),
    "plan": ("macs", "params", "bytes"),
}
CALLBACK = "+hydra.callbacks.simprune._target_=simprune.cli.recipe.sweep.Summary"


def check_objective(recipe: Recipe, command: str) -> None:
    """ValueError unless the command measures what the recipe wants optimised."""
    known = OBJECTIVES.get(command, ())
    if recipe.objective is None or recipe.objective in known:
        return
    if not known:
        raise ValueError(f"objective: {command} has none; leave it out, or sweep {' or '.join(OBJECTIVES)}")
    raise ValueError(f"objective: unknown {recipe.objective!r}; {did_you_mean(recipe.objective, known)}")


def value(recipe: Recipe, figures: Mapping[str, Any]) -> float | None:
    """The number that an optimising sweeper gets, None if no model came out; ValueError when it was not measured."""
    if recipe.objective is None or recipe.objective not in figures:
        return None
    found = figures[recipe.objective]
    if found is None:
        raise ValueError(f"objective: {recipe.objective} was not measured; it needs test data with classes and labels")
    return float(found)


def leave(out: Path, code: int, error: str | None, figures: Mapping[str, Any], objective: float | None) -> None:
    """Leave the record of a sweep's job in its folder; nothing for a run of its own."""
    run = HydraConfig.get()
    if run.mode != RunMode.MULTIRUN:
        return
    found = {
        "job": run.job.num,
        "overrides": [as_typed(each) for each in run.overrides.task],
        "code": code,
        "error": error,
    }
    out.mkdir(parents=True, exist_ok=True)
    _write(out / JOB, found | {"objective": objective, "figures": finite(dict(figures)), "folder": str(out)})


class Summary(Callback):
    """Gathers the jobs' records into sweep.json when all are done; Hydra calls it in the process that started them."""

    found: ClassVar[dict[str, Any] | None] = None  # of the last sweep of this process

    @classmethod
    def forget(cls) -> None:
        cls.found = None

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        jobs = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob(f"*/{JOB}")]
        jobs.sort(key=lambda job: job["job"])
        optuna = folder / OPTUNA
        Summary.found = {
            "command": str(config.hydra.job.name),
            "recipe": str(config.hydra.job.config_name),
            "objective": config.get("objective"),
            "jobs": jobs,
            "optuna": str(optuna) if optuna.is_file() else None,
            "folder": str(folder),
        }
        if jobs:
            _write(folder / SWEEP, Summary.found)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
