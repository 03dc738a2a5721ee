"""The frontier: what is left of accuracy and agreement at every cost, with depth, width and chance beside it."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from torch import nn

from simprune import measures
from simprune.checks import clopper_pearson
from simprune.core.cost import KINDS
from simprune.core.names import did_you_mean
from simprune.core.peekable import Peekable
from simprune.core.plan import Method, Plan
from simprune.core.progress import progress
from simprune.core.redundancy import Redundancy
from simprune.core.registry import Choice
from simprune.measures import Measure
from simprune.repair.recovery import Recovery, training
from simprune.repair.stages import StageTable, mean
from simprune.scores.estimate import estimate
from simprune.trace.network import Network
from simprune.trace.timing import time_both
from simprune.tune.plan import CONSTRAINTS, plan
from simprune.tune.trials import calibrate

BUDGETS = (0.9, 0.7, 0.5, 0.3)
CONTROL = 3  # random plans
ALONG = (*KINDS, "latency")  # kinds of cost that a frontier may be along
CURVES = {"joint": "blocks and channels", "depth": "blocks alone", "width": "channels alone", "random": "the control"}


@dataclass(frozen=True)
class Frontier:
    """One point per curve and budget, as plain data, and the plans behind the points.

    Costs and latency are shares of the original's; bounds are 95 % intervals of rates on the test inputs.
    """

    data: dict[str, Any]
    plans: Mapping[tuple[str, float], Plan]

    @property
    def points(self) -> list[dict[str, Any]]:
        return self.data["points"]

    def curve(self, name: str) -> list[dict[str, Any]]:
        """The points of one curve that could be reached, from the mildest budget on."""
        return [point for point in self.points if point["curve"] == name and point["reachable"]]


def frontier(
    model: nn.Module,
    *,
    calibration: Iterable,
    train: Iterable | None = None,
    test: Iterable | None = None,
    budgets: Sequence[float] = BUDGETS,
    kind: str = "macs",
    structures: Sequence[str] = ("channels", "blocks"),
    measure: str | Measure = "cka_debiased",
    planner: str | Mapping[str, Any] = "greedy",
    reconstruct: Method = "least_squares",
    finetune: Mapping[str, Any] | int | None = None,
    control: int = CONTROL,
    seed: int = 0,
    block_score: Choice = "similarity",
    score: Choice = "second_order",
    replace: str = "identity",
    trials: Sequence[float] = (),
) -> Frontier:
    """Accuracy, agreement and latency at several shares of one `kind` of cost, from one analysis.

    `kind`: macs, params, bytes or latency, which is measured for every plan and so takes longer. `model` is not
    changed. Curves: all `structures` in one plan, blocks alone, the others alone, and the mean of `control` random
    plans, all repaired and trained alike (arguments as of `compress`). A share that a curve cannot reach is a point
    without figures that says why. Latency is measured in turns with the original. Raises ValueError or KeyError for
    wrong arguments.
    """
    check_shares(kind, budgets)
    if control < 1:
        raise ValueError(f"control must be at least one random plan; got {control}")
    options: dict[str, Any] = {"name": planner} if isinstance(planner, str) else dict(planner)
    name = str(options.pop("name"))
    settings, notes = training(finetune, train)
    recovery = Recovery(calibration, train, reconstruct, settings, seed)
    measure = measures.get(measure) if isinstance(measure, str) else measure
    calibration = Peekable(calibration, "calibration")
    network = Network.trace(model, calibration.first)
    redundancy = estimate(network, calibration, measure, structures, score, block_score, seed=seed).redundancy
    redundancy = redundancy.replacing(replace)
    redundancy = calibrate(redundancy, network, calibration, trials, reconstruct)

    def choose(part: Redundancy, share: float, kind: str = kind) -> Plan:
        tools: dict[str, Any] = {"seed": seed, "network": network, "calibration": calibration, "repair": reconstruct}
        return plan(part, {kind: share}, name, **(tools | options))

    def chance(share: float) -> list[Plan]:
        held = {key: options[key] for key in (*CONSTRAINTS, "batch_size") if key in options}
        given: dict[str, Any] = {"network": network} | held
        return [plan(redundancy, {kind: share}, "random", draw, **given) for draw in range(seed, seed + control)]

    choose(redundancy, 1.0, "macs")  # what is wrong with anything but the budget is said here
    stages = StageTable(network.example, test, batch_size=options.get("batch_size"))
    stages.add("original", model)
    if test is None:
        notes.append("no test batches: accuracy and agreement were left out")
    follow = _Points(network, recovery, stages)
    tasks = [
        (curve, share, (lambda part=part, share=share: [choose(part, share)]))
        for curve, part in _parts(redundancy).items()
        for share in sorted(budgets, reverse=True)
    ]
    tasks += [("random", share, (lambda share=share: chance(share))) for share in sorted(budgets, reverse=True)]
    points, plans = [], {}
    for curve, share, made in progress(tasks, "frontier"):
        point, chosen = follow.point(curve, share, made)
        points.append(point)
        if len(chosen) == 1 and curve != "random":
            plans[curve, share] = chosen[0]
    original = {key: value for key, value in stages.rows[0].items() if key != "name"}
    data = {
        "simprune": version("simprune"),
        "model": type(model).__name__,
        "seed": seed,
        "kind": kind,
        "settings": {
            "measure": redundancy.measure, "planner": name, "structures": list(structures), "reconstruct": reconstruct,
            "finetune": settings, "control": control, "replace": replace, "trials": list(trials),
        },
        "inputs": follow.count,
        "original": original,
        "curves": {curve: CURVES[curve] for curve in dict.fromkeys(task[0] for task in tasks)},
        "points": points,
        "notes": notes,
    }  # fmt: skip
    return Frontier(data, plans)


def _parts(redundancy: Redundancy) -> dict[str, Redundancy]:
    """The structures of every curve; where there is only one kind the joint curve is that kind's."""
    found = {"joint": redundancy}
    if redundancy.blocks and redundancy.channels:
        found |= {
            "depth": dataclasses.replace(redundancy, channels=()),
            "width": dataclasses.replace(redundancy, blocks=()),
        }
    return found


def check_shares(kind: str, budgets: Sequence[Any]) -> None:
    """ValueError, in one line, unless these are budgets that a frontier can have."""
    if kind not in ALONG:
        raise ValueError(f"budget: a frontier is along {', '.join(ALONG)}; {did_you_mean(str(kind), ALONG)}")
    if not budgets:
        raise ValueError(f"budget: the list is empty; give shares of the {kind} to keep, such as [0.9, 0.7, 0.5, 0.3]")
    for share in budgets:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise ValueError(f"budget: a list is one of shares of the {kind} in (0, 1]; got {share!r}")
    if len(set(budgets)) < len(budgets):
        raise ValueError(f"budget: a share is listed twice in {list(budgets)}; list each once")


@dataclass(frozen=True)
class _Points:
    """From plans to points: follow each, look at the last stage, time it beside the original."""

    network: Network
    recovery: Recovery
    stages: StageTable

    @property
    def count(self) -> int | None:
        return None if self.stages.original is None else len(self.stages.original.logits)

    def point(self, curve: str, share: float, make: Callable[[], list[Plan]]) -> tuple[dict[str, Any], list[Plan]]:
        asked = {"curve": curve, "budget": share}
        try:
            plans = make()
        except ValueError as error:  # the same call with a budget of one was fine
            empty = dict.fromkeys((*KINDS, "accuracy", "agreement", "accuracy_bounds", "agreement_bounds", "latency"))
            return asked | {"reachable": False, "reason": str(error)} | empty | {"latency_ms": None, "plans": 0}, []
        rows = [self._row(each) for each in plans]
        found = mean(rows)
        bounds = {f"{key}_bounds": self._bounds(found[key], len(plans)) for key in ("accuracy", "agreement")}
        return asked | {"reachable": True, "reason": ""} | found | bounds | {"plans": len(plans)}, plans

    def _row(self, chosen: Plan) -> dict[str, Any]:
        stages = self.stages.untimed()
        small = self.recovery.follow(chosen, self.network, stages.add).model
        original, last = self.stages.rows[0], stages.rows[-1]
        _, after, ratio = time_both(self.network.model, small, self.stages.batch)
        return {
            **{kind: last[kind] / max(original[kind], 1) for kind in KINDS},
            "accuracy": last["accuracy"],
            "agreement": last["agreement"],
            "latency": ratio,
            "latency_ms": 1e3 * after,
        }

    def _bounds(self, rate: float | None, plans: int) -> list[float] | None:
        """95 % interval (Clopper-Pearson) of a single plan's rate."""
        if rate is None or plans > 1 or self.count is None:
            return None
        lower, upper = clopper_pearson(round(rate * self.count), self.count, 0.975)
        return [float(lower), float(upper)]
