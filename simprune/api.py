"""The public functions: analyze, plan, apply, compress, frontier, reconstruct; each over `simprune.settings`.

Arguments are checked whole before the first forward pass of the model (`simprune.arguments`); the work itself is in
`simprune.stages` and in the rooms below.
"""

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from simprune.arguments import SMALLEST, Arguments, check_budget, check_gates, check_model, measure_of
from simprune.bundle import Result
from simprune.checks import Verdict, rehearse
from simprune.checks import validate as check
from simprune.core.alone import one_at_a_time
from simprune.core.batches import device_of
from simprune.core.checkpoint import Checkpoint
from simprune.core.example import from_description
from simprune.core.in_step import require_same
from simprune.core.options import takes_options
from simprune.core.peekable import Peekable
from simprune.core.plan import Plan
from simprune.core.processes import together
from simprune.core.progress import progress
from simprune.core.redundancy import Redundancy
from simprune.core.weights import digest
from simprune.edit.apply import apply as edit
from simprune.edit.configuration import stand_ins_of
from simprune.edit.reopening import is_pretrained
from simprune.idle import refuse_idle
from simprune.measures import Measure
from simprune.planners.budget import Amount
from simprune.repair.reconstruct import Rules
from simprune.repair.reconstruct import reconstruct as repair
from simprune.repair.refit import Refit
from simprune.scores.depth import compare_models, describe_depth
from simprune.scores.estimate import Estimate
from simprune.scores.layers import Layers, read_counterpart, read_layers, similarity
from simprune.settings import CONTROL, Planner, Settings
from simprune.stages import Run, planned
from simprune.trace.first_run import check_module, check_runs
from simprune.trace.later_runs import names_failing_batches
from simprune.trace.network import Network
from simprune.trace.offload import at_hand
from simprune.trace.timing import Timer, clock, sentence
from simprune.tune.frontier import Frontier, trace_frontier

__all__ = ["SMALLEST", "analyze", "apply", "compress", "examine", "frontier", "plan", "reconstruct", "validate"]


@one_at_a_time
@together
@names_failing_batches
@takes_options(Settings, "analyze")
def analyze(
    model: nn.Module,
    calibration: Iterable,
    *,
    damage: bool = True,
    folder: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Redundancy:
    """Estimate how redundant every removable structure of a model is.

    Args:
        model: the network; it is not changed.
        calibration: batches that can be walked more than once: tensors, (inputs, labels) or dicts.
        damage: whether the damage of blocks is weighed by the output, which only plans need and costs a backward pass.
        folder: where finished stages are stored; the same call goes on from there.
        {options}

    Returns:
        The redundancy of every block and channel group, as plain data; `simprune.plan` takes it.

    Raises:
        TypeError: for an argument that there is not.
        ValueError: for a wrong value.
        KeyError: for an unknown measure, score, structure or repair.

    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> [entry.name for entry in analyze(model, [torch.randn(32, 4)]).channels]
    ['0']
    """
    given = Arguments.of("analyze", model, calibration, options)
    refuse_idle(given.settings, "analyze", damage=damage)
    run = Run.begin(given)
    checkpoint = None
    if folder is not None:
        checkpoint = Checkpoint(Path(folder), {"settings": repr(given.settings), "model": digest(given.model)})
    return run.redundancy(damage, checkpoint)


@one_at_a_time
@names_failing_batches
def plan(
    redundancy: Redundancy,
    budget: Mapping[str, Amount | None] | None = None,
    planner: str | Mapping[str, Any] | Planner = "greedy",
    seed: int = 0,
    *,
    model: nn.Module | None = None,
    calibration: Iterable | None = None,
    reconstruct: str | Mapping[str, Any] = "least_squares",
    timer: Timer = clock,
    **options: Any,
) -> Plan:
    """Choose what to remove so that at most the budget is kept.

    Args:
        redundancy: what `analyze` returned.
        budget: shares in (0, 1] of the original, or amounts with a unit, such as "60M", of macs, params, bytes, memory,
            latency; None for half of the macs, or what a planner's threshold says.
        planner: a name (`simprune list planners`), or a mapping with `name`, constraints and options.
        seed: of planners that draw at random.
        model: the original, on which memory and latency are measured and finalists are tried.
        calibration: batches, for finalists.
        reconstruct: the repair of finalists.
        timer: (module, args, kwargs) -> seconds, for latency.
        options: constraints and options of the planner, such as `round_to=8` (`simprune list planners`).

    Returns:
        The plan; `simprune.apply` takes it, and `plan.save(path)` writes it as a file to read and edit.

    Raises:
        ValueError: for a wrong value, and when the budget is out of reach; the message says how far one can go.
        KeyError: for an unknown planner.

    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> made = plan(analyze(model, [torch.randn(32, 4)]), budget={"macs": 0.5})
    >>> len(made.edits[0].indices)
    4
    """
    chosen = Planner.named(planner, options)
    check_budget(budget, chosen, "plan")
    refuse_idle(Settings(planner=chosen, reconstruct=reconstruct), "plan")
    if timer is not clock and not {"latency", "memory"} & {*(budget or {})}:
        raise ValueError("timer has no effect: nothing is measured; add latency to the budget, as latency: 3ms")
    if not isinstance(redundancy, Redundancy):
        raise ValueError(f"redundancy: expected what simprune.analyze returned; got {type(redundancy).__name__}")
    if model is not None:
        check_module(model)
        model = at_hand(model)
    network = None if model is None else Network(model, from_description(redundancy.inputs, device_of(model)))
    if calibration is not None:
        calibration = Peekable(calibration, "calibration")
        if model is not None:
            check_runs(model, calibration.first, "calibration")
    tools: dict[str, Any] = {"network": network, "calibration": calibration, "repair": reconstruct, "timer": timer}
    return planned(redundancy, budget, chosen, seed=seed, **tools)


@one_at_a_time
def apply(plan: Plan, model: nn.Module) -> nn.Module:
    """Edit a copy of a model as a plan says.

    Args:
        plan: of this model, or of another one with the same tensors.
        model: the original; it is not changed.

    Returns:
        A new, smaller module; its layers still have the original's weights. A warning says so where it is of
        transformers, and what went, such as half of a layer, is nothing that its configuration could state.

    Raises:
        ValueError: when the plan is of another model.

    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> small = apply(plan(analyze(model, [torch.randn(32, 4)])), model)
    >>> small[0].out_features
    4
    """
    check_module(model)
    model = at_hand(model)
    small = edit(plan, Network.of_plan(plan, model))
    if is_pretrained(small) and (unsaid := stand_ins_of(small)):
        warnings.warn(f"from_pretrained cannot open the result: no configuration says that {unsaid} went", stacklevel=3)
    return small


@one_at_a_time
@together
@names_failing_batches
def reconstruct(
    small: nn.Module,
    plan: Plan,
    model: nn.Module,
    calibration: Iterable,
    method: str | Mapping[str, Any] = "least_squares",
    **options: Any,
) -> list[Refit]:
    """Repair a smaller model in place, without labels, so that its layers reproduce those of the original.

    Args:
        small: what `apply` returned.
        plan: the plan behind it.
        model: the original.
        calibration: batches, walked once.
        method: a repair (`simprune list repairs`), a mapping with `name` and options, or a mapping of patterns of layer
            names to these.
        options: of the method that is named, such as `ridge` or `values`.

    Returns:
        The errors of every refitted layer or block, before and after.

    Raises:
        ValueError: when `small` is not of the plan and the model, or a pattern fits nothing.
        KeyError: for an unknown repair.

    >>> import torch
    >>> from torch import nn
    >>> model, batches = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), [torch.randn(32, 4)]
    >>> made = plan(analyze(model, batches))
    >>> small = apply(made, model)
    >>> [refit.layer for refit in reconstruct(small, made, model, batches)]
    ['2']
    """
    chosen = {"name": method, **options} if options else method
    check_module(model)
    check_module(small, "small")
    model = at_hand(model)
    if at_hand(small) is not small:
        raise ValueError("small: expected a model with its weights, which are changed in place; got an offloaded one")
    batches = Peekable(calibration, "calibration")
    if Rules.of(chosen).needs_data:
        require_same(small, batches)
        check_runs(model, batches.first, "calibration")
        network = Network.trace(model, batches.first)
        batches.divide(network.inputs_at_once)
    else:  # such as folding, which is given no batches
        network = Network.of_plan(plan, model)
    return repair(small, plan, network, batches, chosen)


@one_at_a_time
@together
@names_failing_batches
@takes_options(Settings, "validate")
def validate(model: nn.Module, small: nn.Module, test: Iterable, gates: Any = None, **options: Any) -> Verdict:
    """Check whether a smaller model may replace the original, with bounds from the number of test inputs.

    Args:
        model: the original.
        small: the other model.
        test: batches, with labels for gates that need them.
        gates: a list of `Gate`, or the name of a check set; None for the default ones.
        {options}

    Returns:
        The verdict: `passed`, `outcome`, `table()`, and the result of every gate.

    Raises:
        ValueError: for gates that do not fit the models or the data.
        KeyError: for an unknown check set or measure.

    >>> import torch
    >>> from torch import nn
    >>> model = nn.Linear(4, 3)
    >>> validate(model, model, [torch.randn(500, 4)]).outcome
    'pass'
    """
    settings = Settings.of_command("validate", options | {"gates": gates})
    check_gates(settings.gates)
    check_model(model, settings)
    check_model(small, settings, "small")
    model, small = at_hand(model), at_hand(small)
    batches = Peekable(test, "test")
    require_same(small, batches)
    check_runs(model, batches.first, "test")
    check_runs(small, batches.first, "test", "smaller model")
    return check(model, small, batches, settings.gates, settings.seed, settings.correction)


@one_at_a_time
@together
@names_failing_batches
@takes_options(Settings, "compress")
def compress(
    model: nn.Module,
    *,
    calibration: Iterable,
    train: Iterable | None = None,
    test: Iterable | None = None,
    validation: Iterable | None = None,
    plan: Plan | None = None,
    folder: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Result:
    """The whole path: analyze, plan, apply, repair, fine-tune, check.

    Args:
        model: the network; it is not changed.
        calibration: batches that can be walked more than once: tensors, (inputs, labels) or dicts.
        train: batches for `finetune`; without them it is left out.
        test: batches on which models are compared; without them there is no verdict. Labels are optional.
        validation: batches on which epochs of the training are judged; None: some of `train` are held out.
        plan: a plan, perhaps edited, to apply; None to make one.
        folder: where the steps of budget "smallest" and the training are stored, with the training's log; the same call
            goes on from there.
        {options}

    Returns:
        The smaller `model`, its `plan`, `verdict`, `redundancy`, and every figure in `report`.

    Raises:
        TypeError: for an argument that there is not.
        ValueError: for a wrong value, and when the budget is out of reach.
        KeyError: for an unknown part.
        simprune.tune.smallest.NothingPassed: when no smaller model passes the gates.

    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> result = compress(model, calibration=[torch.randn(32, 4)], budget={"macs": 0.5})
    >>> result.model[0].out_features
    4
    """
    given = Arguments.of("compress", model, calibration, options, train, test, plan, validation, folder)
    refuse_idle(given.settings, "compress", plan=plan is not None)
    run = Run.begin(given)
    if given.test is not None:
        rehearse(given.model, given.test, given.settings.gates, given.settings.seed, given.settings.correction)
    redundancy = run.redundancy()
    run.original()
    go = run.search if given.searching else run.rounds if given.settings.rounds > 1 else run.follow
    made = go(redundancy, folder)
    stand_ins, verdict = run.finish(made)
    outcome = run.table.rows[-1]["damage"]
    if given.settings.control:
        run.controls(redundancy, made)
    run.time()
    report = run.report(redundancy, made, outcome=outcome, verdict=verdict, stand_ins=stand_ins)
    return Result(made.recovered.model, made.plan, verdict, report, redundancy)


@one_at_a_time
@together
@names_failing_batches
@takes_options(Settings, "frontier", control=CONTROL)
def frontier(
    model: nn.Module,
    *,
    calibration: Iterable,
    train: Iterable | None = None,
    test: Iterable | None = None,
    validation: Iterable | None = None,
    **options: Any,
) -> Frontier:
    """Accuracy, agreement and latency at several shares of one kind of cost, from one analysis.

    Curves: all structures in one plan, blocks alone, the others alone, and the mean of random plans, all repaired and
    trained alike. A share that a curve cannot reach is a point without figures that says why.

    Args:
        model: the network; it is not changed.
        calibration: batches that can be walked more than once.
        train: batches for `finetune`.
        test: batches on which models are compared.
        validation: batches on which epochs of the training are judged; None: some of `train` are held out.
        {options}

    Returns:
        The points as plain data, and the plans behind them.

    Raises:
        TypeError, ValueError, KeyError: as of `compress`.

    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> curve = frontier(model, calibration=[torch.randn(32, 4)], budgets=[0.8, 0.5], control=1).curve("joint")
    >>> [point["macs"] for point in curve]
    [0.75, 0.5]
    """
    given = Arguments.of("frontier", model, calibration, {"control": CONTROL} | options, train, test, None, validation)
    settings = given.settings
    refuse_idle(settings, "frontier")
    if settings.control < 1:
        raise ValueError(f"control: expected at least one random plan; got {settings.control}")
    run = Run.begin(given)
    redundancy = run.redundancy()
    run.table.add("original", given.model)
    if test is None:
        run.notes.append("no test batches: accuracy and agreement were left out")
    run.notes.append(
        "random plans remove what chance names among the same structures until they reach the budget; they are "
        "repaired and trained alike"
    )
    draws = range(settings.seed, settings.seed + settings.control)
    found = trace_frontier(
        run.network, redundancy, run.table, run.recovery, run.choose, settings.budgets, settings.kind, draws
    )
    said = {
        "simprune": version("simprune"),
        "model": type(model).__name__,
        "seed": settings.seed,
        "kind": settings.kind,
    }
    run.notes.append(sentence(found.data["timing"]))
    more = {"control": settings.control, "replace": settings.replace, "trials": list(settings.trials)}
    described = {key: value for key, value in run.described(None).items() if key != "budget"}
    return Frontier(said | {"settings": described | more} | found.data | {"notes": run.notes}, found.plans)


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
    checkpoint: Checkpoint | None = None,
) -> dict[str, Any]:
    """What `simprune analyze` shows, as data: all layers against each other by several measures, blocks, windows,
    segments, chance and intervals, the suggested order, channels; and against the layers of `other` if given.

    `estimated`: on the same batches; what its blocks were seen in is not read again. `null`,
    `bootstrap`: repetitions, 0 for none, on `resample_inputs` inputs drawn once. One forward pass of `other`, and of a
    network without blocks; (layers x inputs x width) rows in memory. `checkpoint`: see `analyze`.
    """
    redundancy, seen = estimated.redundancy, estimated.context
    chosen = [measure_of(each) for each in compared]
    if seen is not None:
        layers = Layers(seen.stream.rows, seen.stream, redundancy.costs)
    else:
        layers = read_layers(network, calibration)
    matrices = []
    for each in progress(chosen, "compare layers"):
        known = seen.whole if seen is not None and each == seen.measure else None
        matrices.append(similarity(each, layers, null, bootstrap, resample_inputs, seed, known, checkpoint))
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
