"""The commands: with a recipe, its model and its data they call the library, write the results and print them."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from simprune import api, bundle, checks, formats
from simprune.arguments import measure_of
from simprune.checks.evidence import Evidence
from simprune.cli import console
from simprune.cli.console import show
from simprune.cli.recipe.compose import load_recipe
from simprune.cli.recipe.objects import model_of, source_of
from simprune.cli.recipe.schema import Recipe, device, gates, settings, several
from simprune.core import processes
from simprune.core.checkpoint import Checkpoint
from simprune.core.cost import KINDS
from simprune.core.in_step import require_same
from simprune.core.options import listed
from simprune.core.peekable import Peekable
from simprune.core.plain import finite
from simprune.core.plan import Plan
from simprune.core.store import refuse_overwriting, write_whole
from simprune.core.weights import digest
from simprune.edit.reopening import is_pretrained
from simprune.idle import effective, idle
from simprune.measures import Measure
from simprune.planners.constraints import Constraints
from simprune.repair.training import forget
from simprune.report import render
from simprune.report.analysis import render_analysis, save_figures, tables
from simprune.report.frontier import frontier_csv, render_frontier, save_frontier
from simprune.report.verdict import junit, render_verdict
from simprune.scores.channels import refuse_wide
from simprune.scores.estimate import estimate
from simprune.settings import CONTROL, Settings
from simprune.sources import Data, model_from
from simprune.trace.first_run import check_runs
from simprune.trace.later_runs import batches_in_errors
from simprune.trace.network import Network
from simprune.tune.smallest import NothingPassed, Record

TRAINING = "training"  # the folder of a training, with its log
UNFINISHED = "unfinished"  # the folder of an analysis that was interrupted
UNCHECKED = (
    "INCONCLUSIVE: the recipe asks for checks and its data has no test batches, so nothing was checked; give test "
    "batches, or check.name=null if nothing is to be checked"
)
EXIT = {"pass": 0, "fail": 1, "inconclusive": 3}
# Keys of a recipe on which the stages of an analysis depend, and keys on which a search does not depend.
ANALYZED = ("model", "data", "measure", "structures", "score", "block_score", "planner", "seed", "analysis")
NOT_SEARCHED = ("defaults", "resume", "analysis", "other", "bundle", "pruned", "junit", "control", "format", "to")


@dataclass(frozen=True)
class Job:
    """One run: the checked recipe, the objects that it names, the recipe as results store it, and the output folder.

    `figures`: the command fills it with the columns of a sweep's table; costs are shares of the original's.
    `command`: as it was typed.
    """

    recipe: Recipe
    measure: Measure
    model: nn.Module
    data: Data
    resolved: dict[str, Any]
    out: Path
    figures: dict[str, Any] = field(default_factory=dict)
    command: str = ""

    @property
    def stamp(self) -> dict[str, str]:
        """When and how the run was started, for its results."""
        return {"date": datetime.now(UTC).isoformat(" ", "minutes"), "command": self.command}

    def write(self, name: str, content: str | Mapping[str, Any]) -> Path:
        """Write a text, or a mapping as JSON, and beside it the recipe of the run."""
        if not isinstance(content, str):
            content = json.dumps(finite(content), indent=1, allow_nan=False)
        write_whole(self.out / "recipe.yaml", yaml.safe_dump(self.resolved, sort_keys=False))
        write_whole(self.out / name, content)
        return self.out / name

    def options(self, function: str) -> dict[str, Any]:
        """The recipe's options for a function of `simprune.api`."""
        given = self.recipe.plan is not None
        recipe, without = effective(self.recipe, function, given), idle(self.recipe, function, given)
        taken = {option.name: getattr(recipe, option.name) for option in listed(Settings, function)}
        return taken | {"measure": self.measure} if "measure" in taken.keys() - without.keys() else taken


def analyze(job: Job) -> int:
    """Write redundancy.json, analysis.json, .html and .csv, and figures; print the table."""
    recipe, wanted = job.recipe, job.recipe.analysis
    refuse_wide(job.model, recipe.structures, recipe.score)
    context = {"recipe": {key: job.resolved.get(key) for key in ANALYZED}, "model": digest(job.model)}
    checkpoint = Checkpoint(job.out / UNFINISHED, context)
    calibration = Peekable(job.data.calibration, "calibration")
    require_same(job.model, calibration)
    network = Network.trace(job.model, calibration.first)
    estimated = estimate(
        network,
        calibration,
        job.measure,
        recipe.structures,
        recipe.score,
        recipe.block_score,
        damage=False,
        checkpoint=checkpoint,
        seed=recipe.seed,
        protects=Constraints(recipe.planner.protect).protects,
    )
    others = [measure_of(choice) for choice in wanted.measures]
    compared = [job.measure, *(measure for measure in others if measure.id != job.measure.id)]
    repeats = (wanted.chance, wanted.bootstrap, recipe.seed)
    analysis = api.examine(
        calibration, estimated, network, compared, *repeats, _counterpart(job), wanted.inputs, checkpoint
    )
    analysis |= job.stamp
    redundancy = estimated.redundancy
    path = job.write("redundancy.json", json.dumps(redundancy.to_dict(), indent=1))
    for name, text in tables(analysis).items():
        job.write(name, text)
    page = job.write("analysis.html", render_analysis(analysis))
    if wanted.figures:
        save_figures(analysis, job.out / "figures")
    data = job.write("analysis.json", analysis)
    show(redundancy.table(console.width()).rstrip("\n"), f"page: {page}", f"data: {path}, {data}")
    checkpoint.clear()
    return 0


def _counterpart(job: Job) -> nn.Module | None:
    """The network to compare with, if there is one: of a bundle of this recipe's model, or of another recipe."""
    other = job.recipe.other
    if other is None:
        return None
    if (Path(other) / "plan.yaml").is_file():
        return bundle.load(other, job.model).to(device(job.recipe))
    return model_of(settings(load_recipe(other), "analyze")).to(device(job.recipe))


def plan(job: Job) -> int:
    """Write plan.yaml and print its edits; for several budgets the frontier."""
    if several(job.recipe.budget) is not None:
        return frontier(job)
    redundancy = api.analyze(job.model, job.data.calibration, **job.options("analyze"))
    planned = api.plan(redundancy, model=job.model, calibration=job.data.calibration, **job.options("plan"))  # pyright: ignore
    job.figures.update(_shares(planned.expected, planned.original))
    path = job.write("plan.yaml", planned.to_yaml())
    show(console.edits(planned), console.finalists(planned), console.costs(planned), f"written to {path}")
    return 0


def frontier(job: Job) -> int:
    """Write frontier.json, .csv and .html, a figure and the plans; print the table."""
    along = several(job.recipe.budget)
    assert along is not None
    options = {"kind": along[0], "budgets": along[1], "control": job.recipe.control or CONTROL}
    traced = api.frontier(job.model, **vars(job.data), **job.options("frontier") | options)
    content = finite(traced.data) | job.stamp
    path = job.write("frontier.json", content)
    table = job.write("frontier.csv", frontier_csv(content))
    page = job.write("frontier.html", render_frontier(content))
    figures = save_frontier(content, job.out / "figures")
    for (curve, share), planned in traced.plans.items():
        planned.save(job.out / "plans" / f"{curve}_{share:g}.yaml")
    lines = [f"note: {note}" for note in content["notes"]]
    for point in content["points"]:
        if point["reason"]:
            lines.append(f"{point['curve']} {point['budget']:.0%}: {point['reason']}")
    lines += [f"page: {page}", f"data: {path}, {table}", *(f"figure: {figure}" for figure in figures[:1])]
    show(console.frontier(content), *lines, f"plans: {job.out / 'plans'}")
    return 0


def compress(job: Job) -> int:
    """Write the bundle and print the stages of the model, and the verdict."""
    recipe = job.recipe
    searched = {key: value for key, value in job.resolved.items() if key not in NOT_SEARCHED}
    options = job.options("compress") | {"gates": gates(recipe), "correction": recipe.check.correction}
    if recipe.plan is not None:
        options["plan"] = Plan.load(recipe.plan)
    if recipe.resume is None:
        refuse_overwriting(job.out / "bundle", "a bundle", "give the run another folder, by hydra.run.dir=FOLDER")
    if recipe.budget == api.SMALLEST:
        options["folder"] = Record(job.out / "search", {"recipe": searched})
    elif recipe.finetune is not None:
        options["folder"] = job.out / TRAINING
    try:
        result = api.compress(job.model, **vars(job.data), **options)
    except NothingPassed as failure:
        found = failure.report | job.stamp
        path = job.write("report.json", found)
        page = job.write("report.html", render(found, job.resolved, ("report.json", "recipe.yaml")))
        job.figures["outcome"] = failure.verdict.outcome
        lines = [str(failure), "no bundle was made", f"report: {page}, {path}"]
        show(console.search(failure.report), failure.verdict.table(console.width()), *lines)
        return EXIT[failure.verdict.outcome]
    result.report.update(job.stamp)
    report, verdict = result.report, result.verdict
    original, *smaller = [stage for stage in report["stages"] if stage["name"] != "random control"]
    last, outcome = smaller[-1], None if verdict is None else verdict.outcome
    job.figures.update(outcome=outcome, accuracy=last["accuracy"], agreement=last["agreement"])
    job.figures.update(_shares(last, original), latency_ms=last["latency_ms"])
    folder = bundle.save(job.out / "bundle", result, recipe=job.resolved, overwrite=recipe.resume is not None)
    forget(job.out / TRAINING)
    asked = recipe.check.name is not None or recipe.check.gates is not None
    unchecked = verdict is None and asked
    show(
        console.search(report),
        console.finalists(result.plan),
        console.stages(report),
        None if verdict is None else verdict.table(console.width()),
        console.margin(report),
        console.damage(report),
        console.reopening(report),
        *(f"note: {note}" for note in report["notes"]),
        f"bundle: {folder}",
        f"report: {folder / 'report.html'}",
        UNCHECKED if unchecked else None,
    )
    code = EXIT["inconclusive" if unchecked else "pass"] if verdict is None else EXIT[verdict.outcome]
    return code if recipe.format is None else _export(job, result) or code


def _shares(costs: Mapping[str, Any], original: Mapping[str, Any]) -> dict[str, float]:
    """Costs as shares of the original's."""
    return {kind: costs[kind] / max(original[kind], 1) for kind in KINDS}


def validate(job: Job) -> int:
    """Check the pruned model, of a bundle or built by a function; write verdict.json and .html and JUnit XML."""
    recipe = job.recipe
    if job.data.test is None:
        raise ValueError("validate needs test batches; the recipe's data has none")
    test = Peekable(job.data.test, "test")
    small = _function_of(recipe) if recipe.bundle is None else bundle.load(recipe.bundle, job.model)
    small = small.to(device(recipe))
    require_same(small, test)
    check_runs(job.model, test.first, "test")
    check_runs(small, test.first, "test", "smaller model")
    wanted = gates(recipe) or checks.default_gates(job.model, test)
    evidence = Evidence(any(gate.build().form == "classes" for gate in wanted))
    with batches_in_errors({"smaller model": small}):
        verdict = checks.validate(job.model, small, test, wanted, recipe.seed, recipe.check.correction, watch=evidence)
    content = verdict.to_dict() | job.stamp
    job.figures["outcome"] = verdict.outcome
    path = job.write("verdict.json", content)
    page = job.write("verdict.html", render_verdict(content, evidence.to_dict()))
    lines = [verdict.table(console.width()), f"written to {path}", f"page: {page}"]
    if recipe.junit is not None and processes.first():
        _write_junit(Path(recipe.junit), junit(content))
        lines.append(f"JUnit: {recipe.junit}")
    show(*lines)
    return EXIT[verdict.outcome]


def _write_junit(path: Path, content: str) -> None:
    """Write a file whole; what is there and is none, such as a pipe or a link like /dev/stdout, is written into."""
    if path.exists() and (path.is_symlink() or not path.is_file()):
        path.write_text(content, encoding="utf-8")
    else:
        write_whole(path, content)


def _function_of(recipe: Recipe) -> nn.Module:
    """The pruned model that a function builds."""
    return model_from(str(recipe.pruned.function), recipe.pruned.weights)


def export(job: Job) -> int:
    """Write the pruned model, of a bundle or built by a function, for use without simprune; print the difference."""
    recipe = job.recipe
    return _export(job, recipe.bundle or _function_of(recipe).to(device(recipe)))


def _export(job: Job, source: Any) -> int:
    """Write what `simprune.export` takes; the exit code is 1 where the files compute something else."""
    if not processes.first():
        return 0
    recipe = job.recipe
    choice = recipe.format or ("transformers" if is_pretrained(job.model) else "torch")
    options = {"name": choice} if isinstance(choice, str) else dict(choice)
    if options["name"] == "transformers" and (origin := source_of(recipe)) is not None:
        options = {"tokenizer": origin} | options
    inputs = next(iter(job.data.calibration))
    try:
        written = formats.export(source, recipe.to or job.out / "export", options, model=job.model, inputs=inputs)
    except formats.Mismatch as mismatch:
        print(f"simprune: {mismatch}", file=sys.stderr)
        return 1
    show(str(written), *(f"note: {note}" for note in written.notes), f"export: {written.folder}")
    return 0


COMMANDS: dict[str, Callable[[Job], int]] = {
    entry.__name__: entry for entry in (analyze, plan, compress, validate, export)
}
