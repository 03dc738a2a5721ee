"""The stages of `simprune.compress`, each of which returns data, and the report that is made of them."""

import copy
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from simprune.arguments import Arguments
from simprune.checks import Gate, Verdict, margin, rate_interval, validate
from simprune.checks.sets import gates_of
from simprune.checks.validation import default_gates, needs_no_labels
from simprune.core import processes
from simprune.core.batches import device_of
from simprune.core.checkpoint import Checkpoint
from simprune.core.cost import KINDS
from simprune.core.plain import finite
from simprune.core.plan import Plan
from simprune.core.progress import progress, step
from simprune.core.redundancy import Redundancy
from simprune.edit.configuration import reopens
from simprune.edit.generation import generation_lost
from simprune.edit.layer_changes import layer_changes
from simprune.edit.reopening import is_pretrained
from simprune.planners.budget import Amount
from simprune.planners.constraints import Constraints
from simprune.repair.absorb import absorb, notes_of
from simprune.repair.outcome import outcomes
from simprune.repair.recovery import Recovered, Recovery
from simprune.repair.stages import StageTable, mean
from simprune.scores.estimate import estimate
from simprune.settings import Planner, Settings
from simprune.trace.answers import answer, hits
from simprune.trace.network import Network
from simprune.trace.timing import batch_of, sentence
from simprune.tune.plan import ANY_LOADER
from simprune.tune.plan import plan as make_plan
from simprune.tune.rounds import Procedure as Rounds
from simprune.tune.rounds import follow_rounds
from simprune.tune.smallest import Attempt, NothingPassed, Procedure, Record, SearchSettings, history, smallest
from simprune.tune.trials import calibrate


@dataclass(frozen=True)
class Made:
    """A smaller model: the plan, how it was repaired and trained, the rows of its stages, and the verdict if known.

    `steps`: of the search that chose it, none without one.
    """

    plan: Plan
    recovered: Recovered
    rows: list[dict[str, Any]]
    verdict: Verdict | None = None
    steps: tuple[Attempt, ...] = ()


@dataclass
class Run:
    """The work of one call: what was given, the network, and the table of stages; the original is its first row."""

    given: Arguments
    network: Network
    table: StageTable
    recovery: Recovery
    notes: list[str] = field(default_factory=list)
    timing: dict[str, Any] | None = None

    @classmethod
    def begin(cls, given: Arguments) -> "Run":
        settings = given.settings
        tuned = settings.finetune
        training = tuned.to_dict() if tuned is not None and tuned.epochs else None
        if training is not None and training["output_weights"] is None:
            training["output_weights"] = settings.outputs
        given.check_runs()
        network = Network.trace(given.model, given.calibration.first, settings.outputs)
        weights = network.weights  # an unknown name is said before any work
        given.calibration.divide(network.inputs_at_once)
        size = given.plan.planner.get("batch_size") if given.plan is not None else settings.planner.batch_size
        batch_of(network.example, size)  # a wrong size, as a plan file may have, is said before any work

        def passes(small: nn.Module, held: Iterable) -> bool:
            return validate(given.model, small, held, settings.gates, settings.seed, settings.correction).passed

        tools = {"validation": given.validation, "passes": passes}
        recovery = Recovery(given.calibration, given.train, settings.reconstruct, training, settings.seed, **tools)
        return cls(given, network, StageTable(network.example, given.test, batch_size=size, weights=weights), recovery)

    @property
    def settings(self) -> Settings:
        return self.given.settings

    @property
    def labelled(self) -> bool:
        """Whether the test batches have labels."""
        return self.table.original is not None and self.table.original.labelled

    def redundancy(
        self,
        damage: bool = True,
        checkpoint: Checkpoint | None = None,
        network: Network | None = None,
    ) -> Redundancy:
        """How redundant every structure is that the planner does not protect, damages as trial removals show them.

        Args:
            damage: whether damages are measured at the output.
            checkpoint: where finished stages of the blocks are stored.
            network: of a later round; by default the original.
        """
        settings, calibration = self.settings, self.given.calibration
        network = self.network if network is None else network
        estimated = estimate(
            network,
            calibration,
            self.given.measure,
            settings.structures,
            settings.score,
            settings.block_score,
            damage,
            checkpoint,
            settings.seed,
            Constraints(settings.planner.protect).protects,
        )
        found = estimated.redundancy.replacing(settings.replace)
        return calibrate(found, network, calibration, settings.trials, settings.reconstruct)

    def plan(self, redundancy: Redundancy, budget: Mapping[str, Amount | None] | None, **other: Any) -> Plan:
        """What goes for a budget; `other`: arguments in place of those of the run."""
        tools = {"seed": self.settings.seed, "network": self.network, "calibration": self.given.calibration}
        tools["repair"] = self.settings.reconstruct
        made = planned(redundancy, budget, self.settings.planner, **(tools | other))
        return processes.gather(made)[0]  # should machines round differently

    def choose(self, part: Redundancy, budget: Mapping[str, Amount | None] | None, draw: int | None) -> Plan:
        """The run's plan for a part of the structures, or with a seed a random one under the same constraints."""
        if draw is None:
            return self.plan(part, budget)
        held = {key: value for key, value in self.settings.planner.constraints.items() if key in HELD}
        return planned(part, budget, Planner.of({"name": "random", **held}), seed=draw, network=self.network)

    def original(self) -> None:
        """The first row of the table."""
        self.table.add("original", self.given.model)
        if self.given.test is None:
            self.notes.append("no test batches: accuracy, agreement and the checks were left out")
        elif not self.labelled and not needs_no_labels(self.given.model, self.given.test):
            self.notes.append("the test batches have no labels: accuracy and accuracy checks were left out")

    def follow(self, redundancy: Redundancy, folder: str | os.PathLike[str] | None = None) -> Made:
        """The model of the given plan, or of one for the budget; its training is stored in the folder."""
        plan = self.given.plan if self.given.plan is not None else self.plan(redundancy, self.settings.budget)
        if plan.edited:
            self.notes.append("the plan was edited since simprune wrote it: what it expects is of before")
        stored = None if folder is None else Path(folder)
        recovered = self.recovery.follow(plan, self.network, self.table.add, stored)
        return Made(plan, recovered, self.table.rows)

    def rounds(self, redundancy: Redundancy, folder: str | os.PathLike[str] | None = None) -> Made:
        """The model of the last round that passed its checks."""
        settings = self.settings

        def analyze(network: Network) -> Redundancy:
            return self.redundancy(network=network)

        def choose(network: Network, part: Redundancy, budget: Mapping[str, float]) -> Plan:
            return self.plan(part, budget, network=network)

        judge = None if self.given.test is None else lambda small: self.judge(small, settings.gates)
        stored = None if folder is None else Path(folder)
        procedure = Rounds(self.network, analyze, choose, self.recovery, judge, self.table, stored)
        wanted = settings.budget or {"macs": 0.5}
        outcome = follow_rounds(procedure, redundancy, wanted, settings.rounds, settings.schedule)
        chosen = outcome.chosen
        for row in chosen.rows:
            self.table.append(row, chosen.recovered.model)
        self.notes += outcome.notes
        return Made(chosen.plan, chosen.recovered, self.table.rows, chosen.verdict)

    def search(self, redundancy: Redundancy, folder: str | os.PathLike[str] | Record | None) -> Made:
        """The smallest model that passes; every step is stored in the folder.

        Raises:
            NothingPassed: when no smaller model passes; its `report` says why.
        """
        settings, test = self.settings, self.given.test
        gates = self.gates()
        how = SearchSettings(**vars(settings.search))
        trial = Procedure(
            self.network,
            choose=lambda share: self.plan(redundancy, {how.kind: share}),
            recovery=self.recovery,
            judge=lambda small: self.judge(small, how.gates(gates)),
            stages=self.table,
            search=how,
        )
        same = self.described(None) | {
            "seed": settings.seed,
            "measure": str(self.given.measure),
            "planner": asdict(settings.planner),
            "block_score": settings.block_score,
            "score": settings.score,
            "replace": settings.replace,
            "search": asdict(how),
            "correction": settings.correction,
            "gates": [asdict(gate) for gate in gates],
        }
        record = folder if folder is None or isinstance(folder, Record) else Record(Path(folder))
        assert test is not None
        try:
            found = smallest(trial, same, record)
        except NothingPassed as failure:
            said = {"search": history(how, failure.steps, gates), "verdict": failure.verdict.to_dict()}
            failure.report = self.report(redundancy) | said | {"notes": [*self.notes, str(failure)]}
            raise
        for row in found.rows:  # all of one architecture
            self.table.append(row, found.followed.model)
        self.notes.append(history(how, found.steps, gates)["note"])
        return Made(found.plan, found.followed, self.table.rows, found.verdict, found.steps)

    def gates(self) -> list[Gate]:
        """The gates of the settings; by default those that the test batches can decide."""
        test = self.given.test
        if self.settings.gates is not None or test is None:
            return gates_of(self.settings.gates, self.labelled)
        return default_gates(self.given.model, test)

    def judge(self, small: nn.Module, gates: Any) -> Verdict:
        test = self.given.test
        assert test is not None
        with step("checks"):
            return validate(self.given.model, small, test, gates, self.settings.seed, self.settings.correction)

    def finish(self, made: Made) -> tuple[list[dict[str, Any]], Verdict | None]:
        """Stand-ins are folded into layers where that changes nothing; then the last checks."""
        small = made.recovered.model
        if any(edit.replace in ("linear", "mean") for edit in made.plan.edits):
            keys = self.table.architectures[-1]  # of the model before it is changed in place, which is timed as well
            self.table.models |= {key: copy.deepcopy(small) for key in keys}
        stand_ins = absorb(small, made.plan, self.given.calibration)
        self.notes += [*made.recovered.notes, *notes_of(stand_ins)]
        if any(entry.folded_into for entry in stand_ins):
            self.table.add("maps folded", small)
        verdict = made.verdict
        if verdict is None and self.given.test is not None:
            verdict = self.judge(small, self.settings.gates)
        return [entry.to_dict() for entry in stand_ins], verdict

    def controls(self, redundancy: Redundancy, made: Made) -> None:
        """Add the mean row of random plans of the same cost, repaired and trained alike."""
        settings, rows, models, right = self.settings, [], [], []
        own = self.table.hits
        if own is None and self.given.test is not None:  # the rows of a search were measured in tables of their own
            own = hits(answer(made.recovered.model, self.given.test), self.table.original)
        for draw in progress(range(settings.seed, settings.seed + settings.control), "random controls"):
            random = self.choose(redundancy, _same_cost(made.plan), draw)
            other = self.table.beside()
            models.append(self.recovery.follow(random, self.network, other.add).model)
            rows.append(other.rows[-1])
            right.append(other.hits)
        row = {"name": "random control", "plans": settings.control} | mean(rows)
        if own is not None:
            row["margin"] = self._margin(own, right)
        self.table.append(row, *models)
        self.notes.append(
            "the random control removes what chance names among the same structures until it costs as much as the "
            "plan; it is repaired and trained alike"
        )

    def _margin(self, own: Tensor, others: list[Tensor]) -> dict[str, Any]:
        """How much more often the smaller model is right than the random controls, on the same test inputs."""
        assert self.table.original is not None
        rate = "agreement" if self.table.original.labels is None else "accuracy"
        return {"of": rate} | margin(own.numpy(), np.stack([other.numpy() for other in others]), self.settings.seed)

    def _with_intervals(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row of the table with 95 % intervals of its rates, where every input is one answer of one model."""
        alone = hits(self.table.original, self.table.original)
        if alone is None or "plans" in row:
            return dict(row)
        rates = {rate: row[rate] for rate in ("accuracy", "agreement") if row[rate] is not None}
        return dict(row) | {f"{rate}_bounds": rate_interval(value, len(alone)) for rate, value in rates.items()}

    def time(self) -> None:
        """All models of the table are timed in one rotation; a note says with what."""
        with step("latency"):
            self.timing = self.table.time()
        self.notes.append(sentence(self.timing))

    def described(self, plan: Plan | None) -> dict[str, Any]:
        """The settings that a report shows."""
        settings = self.settings
        return {
            "measure": self.given.measure.id,
            "planner": "a given plan" if self.given.plan is not None else settings.planner.name,
            "structures": list(settings.structures),
            "outputs": settings.outputs,
            "budget": settings.budget if plan is None or self.given.searching else dict(plan.budget),
            "reconstruct": settings.reconstruct,
            "finetune": self.recovery.settings,
        }

    def options(self) -> dict[str, Any]:
        """The other settings of the run."""
        settings = self.settings
        names = ("score", "block_score", "replace", "trials", "control", "correction")
        planner = dict(settings.planner.options) | settings.planner.constraints
        searching = {"search": asdict(settings.search)} if self.given.searching else {}
        return finite({name: getattr(settings, name) for name in names} | {"constraints": planner} | searching)

    def report(self, redundancy: Redundancy, made: Made | None = None, **rest: Any) -> dict[str, Any]:
        """Every figure of a run, as plain data; without `made` what is known before there is a model."""
        report = {
            "simprune": version("simprune"),
            "date": datetime.now(UTC).isoformat(" ", "minutes"),
            "seed": self.settings.seed,
            "settings": self.described(None if made is None else made.plan) | self.options(),
            "stages": [self._with_intervals(row) for row in self.table.rows],
            "timing": self.timing,
            "redundancy": redundancy.to_dict(),
            "notes": self.notes,
            "environment": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "torch-pruning": version("torch-pruning"),
                "device": str(device_of(self.given.model)),
            },
        }
        if made is None:
            return report
        if made.steps:
            report["search"] = history(SearchSettings(**vars(self.settings.search)), made.steps, self.gates())
        plan, recovered = made.plan, made.recovered
        if ANY_LOADER in plan.expected:
            free, equal = plan.expected[ANY_LOADER], plan.expected["damage"]
            self.notes.append(f"equal layers, for transformers: expected damage {equal:.3g}; without them {free:.3g}")
        expected = {**plan.expected, "outcome": rest.pop("outcome")}
        edits = outcomes(plan, redundancy, recovered.repairs)
        verdict = rest.pop("verdict")
        if is_pretrained(recovered.model):
            report["transformers"] = reopens(recovered.model, self.given.calibration.first).to_dict()
            if lost := generation_lost(recovered.model, self.given.model, self.given.calibration.first):
                self.notes.append(lost)
        return report | {
            "plan": plan.to_dict() | {"expected": expected, "edits": edits},
            "layers": layer_changes(plan, self.network),
            "reconstruction": recovered.repairs,
            "finetuning": recovered.epochs,
            "stand_ins": rest.pop("stand_ins"),
            "verdict": verdict.to_dict() if verdict is not None else None,
        }


HELD = ("protect", "round_to", "min_width", "max_share", "loader", "batch_size")  # what a random plan keeps to as well


def planned(redundancy: Redundancy, budget: Mapping[str, Amount | None] | None, planner: Planner, **tools: Any) -> Plan:
    """A plan by the planner of the settings; without a budget half of the macs, or what a threshold says."""
    free = planner.options.get("threshold") is not None
    default = {} if free else {"macs": 0.5}
    return make_plan(redundancy, default if budget is None else budget, planner, **tools)


def _same_cost(plan: Plan) -> Mapping[str, Amount] | None:
    """The budget for a control: the plan's, or where that was not one of counted costs, the macs that it keeps."""
    counted = {kind: limit for kind, limit in plan.budget.items() if kind in KINDS}
    if counted or not plan.original.get("macs") or not plan.expected.get("macs"):
        return counted or None
    return {"macs": min(plan.expected["macs"] / plan.original["macs"], 1.0)}
