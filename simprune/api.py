"""analyze, plan, compress, in order: no mathematics and no file formats here."""

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from simprune import measures
from simprune.bundle import Result
from simprune.checks import Gate, gates_of, rehearse, validate
from simprune.core.batches import device_of
from simprune.core.cost import KINDS
from simprune.core.example import from_description
from simprune.core.names import did_you_mean
from simprune.core.peekable import Peekable
from simprune.core.plan import Method, Plan
from simprune.core.progress import progress
from simprune.core.redundancy import Redundancy
from simprune.core.registry import Choice
from simprune.core.store import Kept
from simprune.edit.apply import apply as edit
from simprune.measures import Measure
from simprune.planners.budget import Amount
from simprune.planners.outcome import outcomes
from simprune.repair.absorb import absorb, told
from simprune.repair.reconstruct import Rules
from simprune.repair.reconstruct import reconstruct as repair
from simprune.repair.recovery import Recovery, training
from simprune.repair.refit import Refit
from simprune.repair.stages import StageTable, mean
from simprune.scores.estimate import Estimate, estimate
from simprune.scores.layers import Layers, compare_models, describe_depth, read_counterpart, read_layers, similarity
from simprune.trace.network import Network
from simprune.trace.timing import latency, time_both
from simprune.tune.plan import CONSTRAINTS
from simprune.tune.plan import plan as make_plan
from simprune.tune.smallest import NothingPassed, Record, SearchSettings, Procedure, history, smallest
from simprune.tune.trials import calibrate

SMALLEST = "smallest"


def analyze(
    model: nn.Module,
    calibration: Iterable,
    measure: str | Measure = "cka_debiased",
    structures: Sequence[str] = ("channels", "blocks"),
    block_score: Choice = "similarity",
    score: Choice = "second_order",
    damage: bool = True,
    replace: str = "identity",
    kept: Kept | None = None,
    trials: Sequence[float] = (),
    repair: Method = "least_squares",
    seed: int = 0,
) -> Redundancy:
    """Estimate how redundant every removable structure is. See `simprune.scores.estimate.estimate`.

    `replace`: what will stand in for whole blocks, "identity", "linear" or "mean" (`simprune.repair.stand_ins`).
    `trials`: shares of what blocks, channels and heads could save, to be removed on trial and repaired by `repair`, so
    that damage is what removals really cost the output (`simprune.tune.trials.calibrate`). `kept`: a folder in which
    finished stages are kept, and looked up when the same call is made again.
    """
    calibration = Peekable(calibration, "calibration")
    network = Network.trace(model, calibration.first)
    chosen = _measure(measure)
    redundancy = estimate(network, calibration, chosen, structures, score, block_score, damage, kept, seed).redundancy
    return calibrate(redundancy.replacing(replace), network, calibration, trials, repair)


def examine(
    calibration: Iterable,
    estimated: Estimate,
    network: Network,
    compared: Sequence[str | Measure] = ("cka_debiased",),
    null: int = 20,
    bootstrap: int = 50,
    seed: int = 0,
    other: nn.Module | None = None,
    resample_inputs: int = 384,
    kept: Kept | None = None,
) -> dict[str, Any]:
    """What `simprune analyze` shows, as data: all layers against each other by several measures, blocks, windows,
    segments, chance and intervals, the suggested order, channels; and against the layers of `other` if given.

    `estimated`: on the same batches; what its blocks were seen in is not read again. `null`,
    `bootstrap`: repetitions, 0 for none, on `resample_inputs` inputs drawn once. One forward pass of `other`, and of a
    network without blocks; (layers x inputs x width) rows in memory. `kept`: see `analyze`.
    """
    redundancy, seen = estimated.redundancy, estimated.context
    chosen = [_measure(each) for each in compared]
    if seen is not None:
        layers = Layers(seen.stream.rows, seen.stream, redundancy.costs)
    else:
        layers = read_layers(network, calibration)
    matrices = []
    for each in progress(chosen, "compare layers"):
        known = seen.whole if seen is not None and each == seen.measure else None
        matrices.append(similarity(each, layers, null, bootstrap, resample_inputs, seed, known, kept))
    scores = {entry.name: entry.redundancy for entry in redundancy.blocks}
    found = describe_depth(layers, scores, chosen, matrices)
    content = redundancy.to_dict()
    found |= {
        "simprune": version("simprune"),
        "model": type(network.model).__name__,
        "seed": seed,
        "score": next((entry.score for entry in redundancy.blocks), ""),
        "channels": [entry for entry in content["entries"] if entry["kind"] != "block"],
        "unprunable": content["unprunable"],
    }
    if other is not None:
        against = read_counterpart(Network(other, network.example), calibration, layers)
        found["other"] = compare_models(layers, against, chosen) | {"name": type(other).__name__}
    return found


def compress(
    model: nn.Module,
    *,
    calibration: Iterable,
    train: Iterable | None = None,
    test: Iterable | None = None,
    budget: Mapping[str, Amount | None] | str | None = None,
    structures: Sequence[str] = ("channels", "blocks"),
    measure: str | Measure = "cka_debiased",
    planner: str | Mapping[str, Any] = "greedy",
    reconstruct: Method = "least_squares",
    finetune: Mapping[str, Any] | int | None = None,
    gates: Sequence[Gate] | None = None,
    correction: str = "holm",
    control: int = 0,
    seed: int = 0,
    plan: Plan | None = None,
    block_score: Choice = "similarity",
    score: Choice = "second_order",
    replace: str = "identity",
    trials: Sequence[float] = (),
    search: Mapping[str, Any] | None = None,
    folder: str | os.PathLike[str] | Record | None = None,
) -> Result:
    """The whole path: analyze, plan, apply, repair, fine-tune, check. `model` is not changed.

    `budget`: what to keep (`simprune.planners.budget`), macs 0.5 when not given; or "smallest": the smallest model that
    passes the gates, found as `search` says (`simprune.tune.smallest.SearchSettings`; needs `test`). With a `folder` every step of the
    search is kept there, and the same call goes on from what it finds there. `planner`: a name, or a mapping with
    `name`, constraints and options. `plan`: apply this (edited) plan and make none.
    `reconstruct`: as `simprune.reconstruct` takes its method, or "bn", which re-estimates BatchNorm. `finetune`: None,
    a number of epochs, or arguments of `simprune.finetune`; needs `train`. `control`: how many random plans of the same
    budget to build, repaired and trained in the same way; the table shows their mean. `score` and `block_score`: see
    `simprune.scores` and `simprune.scores.blocks`. `replace`: what stands in for whole blocks, see `analyze`. `trials`: see
    `analyze`. Without `test` there are no accuracies and no verdict. What was left out is in `report["notes"]`. Raises
    ValueError or KeyError with one clear line for wrong arguments, and `simprune.tune.smallest.NothingPassed` when there is no
    smaller model that passes.
    """
    searching = isinstance(budget, str)
    if searching and (budget != SMALLEST or test is None or plan is not None):
        raise ValueError(_not_searched(str(budget), test, plan))
    settings, notes = training(finetune, train)
    recovery = Recovery(calibration, train, reconstruct, settings, seed)
    if test is None:
        notes.append("no test batches: accuracy, agreement and the checks were left out")
    else:
        rehearse(model, test, gates, seed, correction)  # gates that do not fit are an error before all the work
    name, options = _planner(planner)
    kept = {key: value for key, value in options.items() if key in CONSTRAINTS}
    how = SearchSettings(**(search or {}))
    calibration = Peekable(calibration, "calibration")
    network = Network.trace(model, calibration.first)
    chosen = _measure(measure)
    redundancy = estimate(network, calibration, chosen, structures, score, block_score, seed=seed).redundancy
    redundancy = calibrate(redundancy.replacing(replace), network, calibration, trials, reconstruct)
    stages = StageTable(network.example, test, batch_size=(options if plan is None else plan.planner).get("batch_size"))
    stages.add("original", model)
    tools: dict[str, Any] = {"seed": seed, "network": network, "calibration": calibration, "repair": reconstruct}
    unlabelled = stages.original is None or stages.original.labels is None
    if test is not None and unlabelled:
        notes.append("the test batches have no labels: accuracy and accuracy checks were left out")
    report: dict[str, Any] = {
        "simprune": version("simprune"),
        "seed": seed,
        "settings": {
            "measure": redundancy.measure,
            "planner": "a given plan" if plan is not None else name,
            "structures": list(structures),
            "budget": budget,
            "reconstruct": reconstruct,
            "finetune": settings,
        },
        "stages": stages.rows,
        "redundancy": redundancy.to_dict(),
        "notes": notes,
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torch-pruning": version("torch-pruning"),
            "device": str(device_of(model)),
        },
    }
    verdict = None
    if searching:
        gates = gates_of(gates, labelled=not unlabelled)
        trial = Procedure(
            network,
            choose=lambda share: _plan(redundancy, {how.kind: share}, name, tools | options),
            recovery=recovery,
            judge=lambda small: validate(model, small, test or [], how.gates(gates or []), seed, correction),
            stages=stages,
            search=how,
        )
        same = report["settings"] | {"seed": seed, "measure": str(_measure(measure)), "planner": [name, options]}
        same |= {"block_score": block_score, "score": score, "replace": replace}
        same |= {"search": asdict(how), "correction": correction}
        same |= {"gates": [asdict(gate) for gate in gates]}
        try:
            found = smallest(trial, same, _record(folder))
        except NothingPassed as failure:
            failure.report = report | {
                "search": history(how, failure.steps, gates),
                "verdict": failure.verdict.to_dict(),
                "notes": [*notes, str(failure)],
            }
            raise
        followed, plan, verdict = found.followed, found.plan, found.verdict
        stages.rows += found.rows
        report["search"] = history(how, found.steps, gates)
        notes.append(report["search"]["note"])
    else:
        plan = plan if plan is not None else _plan(redundancy, budget, name, tools | options)
        report["settings"]["budget"] = dict(plan.budget)
        followed = recovery.follow(plan, network, stages.add)
    stand_ins = absorb(followed.model, plan, calibration)
    notes += told(stand_ins)
    if any(entry.folded_into for entry in stand_ins):
        stages.add("maps folded", followed.model)
    if not searching and test is not None:  # validate takes gates that run the models as well
        verdict = validate(model, followed.model, test, gates, seed, correction)
    before, after, _ = time_both(model, followed.model, stages.batch)
    stages.rows[0]["latency_ms"], stages.rows[-1]["latency_ms"] = 1e3 * before, 1e3 * after
    outcome = stages.rows[-1]["damage"]
    if control:
        rows = []
        for draw in range(seed, seed + control):
            random = _plan(redundancy, _same_cost(plan), "random", kept | {"seed": draw})
            other = stages.untimed()
            made = recovery.follow(random, network, other.add).model
            rows.append(other.rows[-1] | {"latency_ms": 1e3 * latency(made, stages.batch)})
        stages.rows.append({"name": "random control", "plans": control} | mean(rows))
    report |= {
        "plan": plan.to_dict()
        | {"expected": {**plan.expected, "outcome": outcome}, "edits": outcomes(plan, redundancy, followed.repairs)},
        "reconstruction": followed.repairs,
        "finetuning": followed.epochs,
        "stand_ins": [entry.to_dict() for entry in stand_ins],
        "verdict": verdict.to_dict() if verdict is not None else None,
    }
    return Result(followed.model, plan, verdict, report, redundancy)


def _not_searched(budget: str, test: Iterable | None, plan: Plan | None) -> str:
    if budget != SMALLEST:
        return f"budget: unknown {budget!r}; {did_you_mean(budget, [SMALLEST])}, or costs, as macs: 0.5"
    if plan is not None:
        return "budget: smallest makes its own plans; leave out the plan, or give no budget"
    return "budget: smallest needs test batches to check on; give test=..."


def _record(folder: str | os.PathLike[str] | Record | None) -> Record | None:
    return folder if folder is None or isinstance(folder, Record) else Record(Path(folder))


def _measure(measure: str | Measure) -> Measure:
    return measures.get(measure) if isinstance(measure, str) else measure


def _planner(planner: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(planner, str):
        return planner, {}
    options = dict(planner)
    return options.pop("name"), options


def _plan(
    redundancy: Redundancy,
    budget: Mapping[str, Amount | None] | None,
    name: str,
    options: dict[str, Any],
) -> Plan:
    free = options.get("threshold") is not None  # it says by itself how much goes
    default = {} if free else {"macs": 0.5}
    return make_plan(redundancy, default if budget is None else budget, name, **options)


def _same_cost(plan: Plan) -> Mapping[str, Amount] | None:
    """The budget for a control: the plan's, or where that was not one of counted costs, the macs that it keeps."""
    counted = {kind: limit for kind, limit in plan.budget.items() if kind in KINDS}
    if counted or not plan.original.get("macs") or not plan.expected.get("macs"):
        return counted or None
    return {"macs": min(plan.expected["macs"] / plan.original["macs"], 1.0)}


def apply(plan: Plan, model: nn.Module) -> nn.Module:
    """A new, smaller module, edited as the plan says; `model` is not changed."""
    return edit(plan, Network(model, from_description(plan.inputs, device_of(model))))


def reconstruct(
    small: nn.Module,
    plan: Plan,
    model: nn.Module,
    calibration: Iterable,
    method: Method = "least_squares",
    **options: Any,
) -> list[Refit]:
    """Repair `small` in place, without labels, so that its layers reproduce those of `model`."""
    chosen = {"name": method, **options} if options else method
    batches = Peekable(calibration, "calibration")
    example = batches.first if Rules.of(chosen).needs_data else None
    network = (
        Network(model, from_description(plan.inputs, device_of(model)))
        if example is None
        else Network.trace(model, example)
    )
    return repair(small, plan, network, batches, chosen)


def plan(
    redundancy: Redundancy,
    budget: Mapping[str, Amount | None],
    planner: str = "greedy",
    seed: int = 0,
    *,
    model: nn.Module | None = None,
    **options: Any,
) -> Plan:
    """Choose what to remove so that at most `budget` of the original's cost is kept."""
    network = None if model is None else Network(model, from_description(redundancy.inputs, device_of(model)))
    return make_plan(redundancy, budget, planner, seed, network=network, **options)
