"""What each command does with a recipe, its model and its data: call the library, write the results, print them."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from simprune import bundle, checks, pipeline
from simprune.console import console, costs, edits, stages
from simprune.measures import Measure
from simprune.planning.plan import Plan
from simprune.recipe import Recipe, device, finetuning, gates
from simprune.redundancy import Redundancy
from simprune.sources import Data

EXIT = {"pass": 0, "fail": 1, "inconclusive": 3}


@dataclass(frozen=True)
class Job:
    """One run: the checked recipe, what it builds, the recipe as it is kept, and the folder to write to."""

    recipe: Recipe
    measure: Measure
    model: nn.Module
    data: Data
    resolved: dict[str, Any]
    out: Path

    def write(self, name: str, text: str) -> Path:
        """Write a result, and beside it the recipe that made it."""
        (self.out / "recipe.yaml").write_text(yaml.safe_dump(self.resolved, sort_keys=False), encoding="utf-8")
        (self.out / name).write_text(text, encoding="utf-8")
        return self.out / name

    def redundancy(self) -> Redundancy:
        return pipeline.analyze(self.model, self.data.calibration, self.measure, self.recipe.structures)


def analyze(job: Job) -> int:
    """Write redundancy.json and print the table."""
    found = job.redundancy()
    path = job.write("redundancy.json", json.dumps(found.to_dict(), indent=1))
    screen = console()
    screen.print(found.table(screen.width), f"written to {path}", sep="", markup=False, soft_wrap=True)
    return 0


def plan(job: Job) -> int:
    """Write plan.yaml and print its edits."""
    planner = job.recipe.planner
    budget = asdict(job.recipe.budget)
    made = pipeline.plan(job.redundancy(), budget, planner.name, **({"seed": job.recipe.seed} | planner.options))
    path = job.write("plan.yaml", made.to_yaml())
    screen = console()
    screen.print(edits(made))
    screen.print(f"{costs(made)}\nwritten to {path}", markup=False, soft_wrap=True)
    return 0


def compress(job: Job) -> int:
    """Write the bundle and print what became of the model, and the verdict."""
    recipe, data = job.recipe, job.data
    result = pipeline.compress(
        job.model,
        calibration=data.calibration,
        train=data.train,
        test=data.test,
        budget=asdict(recipe.budget),
        structures=recipe.structures,
        measure=job.measure,
        planner={"name": recipe.planner.name, **recipe.planner.options},
        reconstruct=recipe.reconstruct,
        finetune=finetuning(recipe),
        gates=gates(recipe),
        control=recipe.control,
        seed=recipe.seed,
        plan=None if recipe.plan is None else Plan.load(recipe.plan),
    )
    folder = bundle.save(job.out / "bundle", result, recipe=job.resolved)
    screen = console()
    screen.print(stages(result.report))
    if result.verdict is not None:
        screen.print(result.verdict.table(screen.width), markup=False)
    lines = [f"note: {note}" for note in result.report["notes"]]
    lines += [f"bundle: {folder}", f"report: {folder / 'report.html'}"]
    screen.print(*lines, sep="\n", markup=False, soft_wrap=True)
    return 0 if result.verdict is None else EXIT[result.verdict.outcome]


def validate(job: Job) -> int:
    """Rebuild a bundle's model, write verdict.json and print the verdict."""
    recipe, test = job.recipe, job.data.test
    if test is None or recipe.bundle is None:
        raise ValueError("validate needs a bundle and test batches; the recipe's data has none")
    small = bundle.load(recipe.bundle, job.model).to(device(recipe))
    verdict = checks.validate(job.model, small, test, gates(recipe), seed=recipe.seed)
    path = job.write("verdict.json", json.dumps(verdict.to_dict(), indent=1))
    screen = console()
    screen.print(verdict.table(screen.width), f"written to {path}", sep="\n", markup=False, soft_wrap=True)
    return EXIT[verdict.outcome]


COMMANDS: dict[str, Callable[[Job], int]] = {
    "analyze": analyze,
    "plan": plan,
    "compress": compress,
    "validate": validate,
}
