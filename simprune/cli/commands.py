"""What each command does with a recipe, its model and its data: call the library, write the results, print them."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

import yaml
from torch import nn

from simprune import api as pipeline
from simprune import bundle, checks
from simprune.arguments import measure_of
from simprune.checks.evidence import Evidence
from simprune.cli.console import console, costs, damage, edits, finalists, search, stages
from simprune.cli.console import frontier as console_frontier
from simprune.cli.recipe import Recipe, device, gates, load_recipe, model_of, settings, several
from simprune.core.checkpoint import Checkpoint
from simprune.core.cost import KINDS
from simprune.core.options import listed
from simprune.core.peekable import Peekable
from simprune.core.plain import finite
from simprune.core.plan import Plan
from simprune.core.redundancy import Redundancy
from simprune.core.weights import digest
from simprune.measures import Measure
from simprune.report import render
from simprune.report.analysis import render_analysis, save_figures, tables
from simprune.report.frontier import frontier_csv, render_frontier, save_frontier
from simprune.report.verdict import junit, render_verdict
from simprune.scores.estimate import estimate
from simprune.settings import CONTROL, Settings
from simprune.sources import Data, model_from
from simprune.trace.network import Network
from simprune.tune.smallest import NothingPassed, Record

UNFINISHED = "unfinished"  # the folder of an analysis that was interrupted
EXIT = {"pass": 0, "fail": 1, "inconclusive": 3}


@dataclass(frozen=True)
class Job:
    """One run: the checked recipe, what it builds, the recipe as it is kept, and the folder to write to.

    `figures`: filled by the command with what the table over a sweep's jobs shows; costs are shares of the original's.
    """

    recipe: Recipe
    measure: Measure
    model: nn.Module
    data: Data
    resolved: dict[str, Any]
    out: Path
    figures: dict[str, Any] = field(default_factory=dict)

    def write(self, name: str, text: str) -> Path:
        """Write a result, and beside it the recipe that made it."""
        (self.out / "recipe.yaml").write_text(yaml.safe_dump(self.resolved, sort_keys=False), encoding="utf-8")
        (self.out / name).write_text(text, encoding="utf-8")
        return self.out / name

    def options(self, function: str) -> dict[str, Any]:
        """What a function of `simprune.api` is given of the recipe."""
        taken = {each.name: getattr(self.recipe, each.name) for each in listed(Settings, function)}
        return taken | {"measure": self.measure} if "measure" in taken else taken


def analyze(job: Job) -> int:
    """Write redundancy.json, analysis.json, .html and .csv, and figures; print the table."""
    context = {"recipe": _what_is_analyzed(job.resolved), "model": digest(job.model)}
    checkpoint = Checkpoint(job.out / UNFINISHED, context)
    try:
        found, analysis = _analysis(job, checkpoint)
    except KeyboardInterrupt:
        if checkpoint.started:
            print(f"simprune: to go on, add {quote(f'resume={job.out}')} to the same command", file=sys.stderr)
        raise
    job.write("redundancy.json", json.dumps(found.to_dict(), indent=1))
    job.write("analysis.json", json.dumps(analysis, indent=1, allow_nan=False))
    for name, text in tables(analysis).items():
        job.write(name, text)
    page = job.write("analysis.html", render_analysis(analysis))
    if job.recipe.analysis.figures:
        save_figures(analysis, job.out / "figures")
    screen = console()
    screen.print(found.table(screen.width), f"page: {page}", sep="", markup=False, soft_wrap=True)
    screen.print(f"data: {job.out / 'redundancy.json'}, {job.out / 'analysis.json'}", markup=False, soft_wrap=True)
    checkpoint.clear()
    return 0


def _analysis(job: Job, checkpoint: Checkpoint) -> tuple[Redundancy, dict[str, Any]]:
    recipe, wanted = job.recipe, job.recipe.analysis
    calibration = Peekable(job.data.calibration, "calibration")
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
    )
    also = [measure_of(choice) for choice in wanted.measures]
    compared = [job.measure, *(each for each in also if each.id != job.measure.id)]
    other = None if job.recipe.other is None else _other(job)
    repeats = (wanted.chance, wanted.bootstrap, job.recipe.seed)
    analysis = pipeline.examine(calibration, estimated, network, compared, *repeats, other, wanted.inputs, checkpoint)
    return estimated.redundancy, analysis


def _what_is_analyzed(resolved: dict[str, Any]) -> dict[str, Any]:
    """The keys of a recipe that the stages of an analysis depend on."""
    keys = ("model", "data", "measure", "structures", "score", "block_score", "seed", "analysis")
    return {key: resolved.get(key) for key in keys}


def _other(job: Job) -> nn.Module:
    """The network to compare with: of a bundle of this recipe's model, or of another recipe."""
    named = str(job.recipe.other)
    if (Path(named) / "plan.yaml").is_file():
        return bundle.load(named, job.model).to(device(job.recipe))
    return model_of(settings(load_recipe(named), "analyze")).to(device(job.recipe))


def plan(job: Job) -> int:
    """Write plan.yaml and print its edits; for several budgets the frontier."""
    recipe = job.recipe
    if several(recipe.budget) is not None:
        return frontier(job)
    redundancy = pipeline.analyze(job.model, job.data.calibration, **job.options("analyze"))
    tried: dict[str, Any] = {"model": job.model, "calibration": job.data.calibration}
    made = pipeline.plan(redundancy, **tried, **job.options("plan"))
    job.figures.update({kind: made.expected[kind] / max(made.original[kind], 1) for kind in KINDS})
    path = job.write("plan.yaml", made.to_yaml())
    screen = console()
    screen.print(edits(made))
    if "finalists" in made.planner:
        screen.print(finalists(made))
    screen.print(f"{costs(made)}\nwritten to {path}", markup=False, soft_wrap=True)
    return 0


def frontier(job: Job) -> int:
    """Write frontier.json, .csv and .html, a figure and the plans; print the table."""
    recipe, data = job.recipe, job.data
    along = several(recipe.budget)
    assert along is not None
    options = job.options("frontier") | {"kind": along[0], "budgets": along[1]}
    options["control"] = recipe.control or CONTROL
    found = pipeline.frontier(job.model, calibration=data.calibration, train=data.train, test=data.test, **options)
    content = finite(found.data)
    path = job.write("frontier.json", json.dumps(content, indent=1, allow_nan=False))
    job.write("frontier.csv", frontier_csv(content))
    page = job.write("frontier.html", render_frontier(content))
    figures = save_frontier(content, job.out / "figures")
    for (curve, share), made in found.plans.items():
        made.save(job.out / "plans" / f"{curve}_{share:g}.yaml")
    screen = console()
    screen.print(console_frontier(content))
    lines = [f"note: {note}" for note in content["notes"]]
    lines += [f"{each['curve']} {each['budget']:.0%}: {each['reason']}" for each in content["points"] if each["reason"]]
    lines += [
        f"page: {page}",
        f"data: {path}, {path.with_suffix('.csv')}",
        *(f"figure: {each}" for each in figures[:1]),
    ]
    screen.print(*lines, f"plans: {job.out / 'plans'}", sep="\n", markup=False, soft_wrap=True)
    return 0


def compress(job: Job) -> int:
    """Write the bundle and print what became of the model, and the verdict."""
    recipe, data = job.recipe, job.data
    record = Record(job.out / "search", {"recipe": _what_matters(job.resolved)})
    screen = console()
    try:
        result = pipeline.compress(
            job.model,
            calibration=data.calibration,
            train=data.train,
            test=data.test,
            plan=None if recipe.plan is None else Plan.load(recipe.plan),
            folder=record if recipe.budget == pipeline.SMALLEST else None,
            **job.options("compress") | {"gates": gates(recipe), "correction": recipe.check.correction},
        )
    except KeyboardInterrupt:
        if record.started:
            print(f"simprune: to go on, add {quote(f'resume={job.out}')} to the same command", file=sys.stderr)
        raise
    except NothingPassed as failure:
        report = failure.report
        path = job.write("report.json", json.dumps(finite(report), indent=1, allow_nan=False))
        page = job.write("report.html", render(report))
        job.figures["outcome"] = failure.verdict.outcome
        screen.print(search(report["search"]), failure.verdict.table(screen.width), markup=False)
        screen.print(f"{failure}\nno bundle was made\nreport: {page}, {path}", markup=False, soft_wrap=True)
        return EXIT[failure.verdict.outcome]
    job.figures.update(_figures(result.report))
    folder = bundle.save(job.out / "bundle", result, recipe=job.resolved)
    if "search" in result.report:
        screen.print(search(result.report["search"]))
    if "finalists" in result.plan.planner:
        screen.print(finalists(result.plan))
    screen.print(stages(result.report))
    if result.verdict is not None:
        screen.print(result.verdict.table(screen.width), markup=False)
    lines = [damage(result.report), *(f"note: {note}" for note in result.report["notes"])]
    lines += [f"bundle: {folder}", f"report: {folder / 'report.html'}"]
    screen.print(*lines, sep="\n", markup=False, soft_wrap=True)
    return 0 if result.verdict is None else EXIT[result.verdict.outcome]


def _figures(report: dict[str, Any]) -> dict[str, Any]:
    """What became of the model, in one row."""
    original, *made = [stage for stage in report["stages"] if stage["name"] != "random control"]
    last = made[-1]
    shares = {kind: last[kind] / max(original[kind], 1) for kind in KINDS}
    outcome = (report["verdict"] or {}).get("outcome")
    rates = {key: last[key] for key in ("accuracy", "agreement")}
    return {"outcome": outcome, **rates, **shares, "latency_ms": last["latency_ms"]}


def _what_matters(resolved: dict[str, Any]) -> dict[str, Any]:
    """The keys of a recipe that a search depends on: it can go on only where they are the same."""
    aside = {"defaults", "resume", "analysis", "other", "bundle", "pruned", "junit", "control"}
    return {key: value for key, value in resolved.items() if key not in aside}


def validate(job: Job) -> int:
    """Check the pruned model, of a bundle or built by a function; write verdict.json and .html and JUnit XML."""
    recipe, test = job.recipe, job.data.test
    if test is None:
        raise ValueError("validate needs test batches; the recipe's data has none")
    if recipe.bundle is not None:
        small = bundle.load(recipe.bundle, job.model)
    else:
        small = model_from(str(recipe.pruned.function), recipe.pruned.weights)
    wanted = gates(recipe)
    evidence = Evidence(any(gate.build().form == "classes" for gate in wanted))
    verdict = checks.validate(
        job.model, small.to(device(recipe)), test, wanted, recipe.seed, recipe.check.correction, watch=evidence
    )
    found = verdict.to_dict()
    job.figures["outcome"] = verdict.outcome
    path = job.write("verdict.json", json.dumps(found, indent=1, allow_nan=False))
    page = job.write("verdict.html", render_verdict(found, evidence.to_dict()))
    lines = [f"written to {path}", f"page: {page}"]
    if recipe.junit is not None:
        Path(recipe.junit).parent.mkdir(parents=True, exist_ok=True)
        Path(recipe.junit).write_text(junit(found), encoding="utf-8")
        lines.append(f"JUnit: {recipe.junit}")
    screen = console()
    screen.print(verdict.table(screen.width), *lines, sep="\n", markup=False, soft_wrap=True)
    return EXIT[verdict.outcome]


COMMANDS: dict[str, Callable[[Job], int]] = {
    "analyze": analyze,
    "plan": plan,
    "compress": compress,
    "validate": validate,
}
