"""The folder of a search: every finished step, and the weights of the best model so far.

`state.json` is replaced as a whole after every step, when the weights that it names have been written. Whenever the
search is interrupted, the folder is therefore that of some finished step. It holds data only, no pickle.
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
    """The folder of a search; `context`: what must be the same for it to be resumed, beside the search's settings."""

    folder: Path
    context: Mapping[str, Any] = field(default_factory=dict)

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def started(self) -> bool:
        """Whether the folder holds a search."""
        return (self.folder / STATE).is_file()

    def load(self, settings: Mapping[str, Any]) -> list[Attempt]:
        """The finished steps; none for a new folder.

        Raises:
            ValueError: for a folder that holds something else, or a search with other settings.
        """
        path = self.folder / STATE
        if not self.started:
            if self.folder.is_dir() and any(not path.name.startswith(".") for path in self.folder.iterdir()):
                raise ValueError(f"{self.folder} is not empty and holds no search; give the search a folder of its own")
            return []
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            stored, steps = dict(state["settings"]), [Attempt.from_dict(step) for step in state["steps"]]
            if state["simprune_search"] != FORMAT:
                raise ValueError(f"format {state['simprune_search']}")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not the state of a search of this simprune ({error})") from None
        refuse_other_settings(self.folder, stored, self._settings(settings))
        return steps

    def save(self, settings: Mapping[str, Any], steps: Sequence[Attempt], best: int | None, model: nn.Module) -> None:
        """Write the steps, and the weights of `model` if the last step is the best so far; delete older weights."""
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
        """Rebuild the model of a step on the original, from its plan and the stored weights."""
        small = apply(plan, network)
        load_weights(small, self.folder / f"step-{step}.safetensors")
        return small

    def _settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return json.loads(json.dumps({**settings, **self.context}, sort_keys=True, default=str))
