"""What is kept of a search: a folder with every finished step and the weights of the best model so far.

`state.json` is replaced as a whole after every step, once the weights it names are there; so at any moment the folder
is that of some finished step. Data only, no pickle.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_model
from torch import nn

from simprune.core.checkpoint import refuse_other_settings
from simprune.core.plan import Plan
from simprune.core.store import write_whole
from simprune.core.weights import load_weights
from simprune.edit.apply import apply
from simprune.trace.network import Network
from simprune.tune.smallest.steps import Attempt

FORMAT = 1
STATE = "state.json"


@dataclass(frozen=True)
class Record:
    """The folder of a search, and what beside its own settings has to be the same for it to go on (`context`)."""

    folder: Path
    context: Mapping[str, Any] = field(default_factory=dict)

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def started(self) -> bool:
        return (self.folder / STATE).is_file()

    def load(self, settings: Mapping[str, Any]) -> list[Attempt]:
        """The finished steps, none for a new folder; ValueError when they are of a search with other settings."""
        path = self.folder / STATE
        if not self.started:
            if self.folder.is_dir() and any(not found.name.startswith(".") for found in self.folder.iterdir()):
                raise ValueError(f"{self.folder} is not empty and holds no search; give the search a folder of its own")
            return []
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            there, steps = dict(state["settings"]), [Attempt.from_dict(step) for step in state["steps"]]
            if state["simprune_search"] != FORMAT:
                raise ValueError(f"format {state['simprune_search']}")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not the state of a search of this simprune ({error})") from None
        refuse_other_settings(self.folder, there, self._settings(settings))
        return steps

    def save(self, settings: Mapping[str, Any], steps: Sequence[Attempt], best: int | None, model: nn.Module) -> None:
        """Keep the steps; when the last one is the best also the weights of its `model`, and no others any more."""
        name = f"step-{best}.safetensors" if best else None
        content = {
            "simprune_search": FORMAT,
            "settings": self._settings(settings),
            "steps": [step.to_dict() for step in steps],
            "weights": name,
        }
        if name is not None and best == len(steps) - 1:
            write_whole(self.folder / name, lambda path: save_model(model, str(path)))
        write_whole(self.folder / STATE, json.dumps(content, indent=1, allow_nan=False) + "\n")
        for path in self.folder.glob("*.safetensors*"):
            if path.name != name:
                path.unlink()

    def model(self, step: int, plan: Plan, network: Network) -> nn.Module:
        """The kept model of a step, rebuilt on the original."""
        small = apply(plan, network)
        load_weights(small, self.folder / f"step-{step}.safetensors")
        return small

    def _settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return json.loads(json.dumps({**settings, **self.context}, sort_keys=True, default=str))
