"""Following a plan: edit, repair, fine-tune."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from simprune.core.plan import Method, Plan
from simprune.core.progress import step
from simprune.edit.apply import apply
from simprune.edit.effects import Effects, effects_of
from simprune.repair.reconstruct import Rules, reconstruct
from simprune.repair.stand_ins import fit_stand_ins
from simprune.repair.training import finetune, notes_of
from simprune.trace.network import Network

Watch = Callable[[str, nn.Module], object]  # (name of the stage, the model at its end)


@dataclass(frozen=True)
class Recovered:
    """The smaller model, the errors of its layers before and after the repair, and the losses of its training.

    `notes`: what the repair left alone, and why.
    """

    model: nn.Module
    repairs: list[dict[str, Any]]
    epochs: list[dict[str, Any]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recovery:
    """What is done to a model after the edits: a repair, then perhaps training.

    `method`: as `simprune.reconstruct` takes it. `settings`: options of `simprune.finetune`, None for no training.
    `validation`: batches on which its epochs are judged. `passes`: whether a model passes all gates on these.
    """

    calibration: Iterable
    train: Iterable | None = None
    method: Method = "least_squares"
    settings: dict[str, Any] | None = None
    seed: int = 0
    validation: Iterable | None = None
    passes: Callable[[nn.Module, Iterable], bool] | None = None

    def __post_init__(self) -> None:
        Rules.of(self.method)

    def follow(
        self, plan: Plan, network: Network, watch: Watch = lambda *_: None, folder: Path | None = None
    ) -> Recovered:
        """Apply a plan, repair and fine-tune.

        Args:
            plan: of this network.
            network: the original.
            watch: sees the model after every stage.
            folder: of the training, which goes on there where it was interrupted.
        """
        effects = effects_of(plan, network)
        with step("edit"):
            small = apply(plan, network, effects)
        fit_stand_ins(small, plan, network, self.calibration, effects)
        watch("pruned", small)
        return self.recover(small, plan, network, watch, folder, effects)

    def recover(
        self,
        small: nn.Module,
        plan: Plan,
        network: Network,
        watch: Watch = lambda *_: None,
        folder: Path | None = None,
        effects: Effects | None = None,
    ) -> Recovered:
        """Repair and fine-tune a model that a plan was applied to; see `follow`."""
        effects = effects_of(plan, network) if effects is None else effects
        notes: list[str] = []
        with step("repair"):
            refits = reconstruct(small, plan, network, self.calibration, self.method, effects, False, notes)
        if title := Rules.of(self.method).title:
            watch(title, small)
        epochs: list[dict[str, Any]] = []
        if self.settings is not None and self.train is not None:
            tools = {"validation": self.validation, "folder": folder, "seed": self.seed}
            tools["calibration"] = self.calibration
            tools["passes"] = self.passes if self.settings["until_passed"] else None
            epochs = finetune(small, self.train, network.model, **tools, **self.settings)
            notes += notes_of(epochs)
            watch("fine-tuned", small)
        return Recovered(small, [refit.to_dict() for refit in refits], epochs, tuple(notes))
