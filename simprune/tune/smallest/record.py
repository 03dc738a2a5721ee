"""The folder of a search: every finished attempt, and the weights of the best model so far.

`state.json` is replaced as a whole after every attempt, when the weights that it names have been written. Whenever the
search is interrupted, the folder is therefore that of some finished attempt. It holds data only, no pickle.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
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
from simprune.tune.smallest.attempts import Attempt

FORMAT = 1
STATE = "state.json"


@dataclass(frozen=True)
class Record:
    """The folder of a search; `context`: further settings that must be the same when the search is resumed."""

    folder: Path
    context: Mapping[str, Any] = field(default_factory=dict)

    def __fspath__(self) -> str:
        return str(self.folder)

    def load(self, settings: Mapping[str, Any]) -> list[Attempt]:
        """The finished attempts; none for a new folder.

        Args:
            settings: of the search; those in the folder must equal them.

        Raises:
            ValueError: for a folder that holds something else, or a search with other settings.
        """
        path = self.folder / STATE
        if not path.is_file():
            if self.folder.is_dir() and any(not path.name.startswith(".") for path in self.folder.iterdir()):
                raise ValueError(f"{self.folder} is not empty and holds no search; give the search a folder of its own")
            return []
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            stored, attempts = dict(state["settings"]), [Attempt(**attempt) for attempt in state["steps"]]
            if state["simprune_search"] != FORMAT:
                raise ValueError(f"format {state['simprune_search']}")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not the state of a search of this simprune ({error})") from None
        refuse_other_settings(self.folder, stored, self._settings(settings))
        return attempts

    def save(
        self, settings: Mapping[str, Any], attempts: Sequence[Attempt], best: int | None, model: nn.Module
    ) -> None:
        """Write the attempts, and if the last one is the best so far the weights of `model`; delete older weights."""
        name = f"step-{best}.safetensors" if best else None
        content = {
            "simprune_search": FORMAT,
            "settings": self._settings(settings),
            "steps": [asdict(attempt) for attempt in attempts],
            "weights": name,
        }
        if name is not None and best == len(attempts) - 1:
            write_whole(self.folder / name, lambda path: save_model(model, str(path)))
        write_whole(self.folder / STATE, json.dumps(content, indent=1, allow_nan=False) + "\n")
        for path in self.folder.glob("*.safetensors*"):
            if path.name != name:
                path.unlink()

    def model(self, index: int, plan: Plan, network: Network) -> nn.Module:
        """Rebuild the model of an attempt on the original, from its plan and the stored weights."""
        small = apply(plan, network)
        load_weights(small, self.folder / f"step-{index}.safetensors")
        return small

    def _settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return json.loads(json.dumps({**settings, **self.context}, sort_keys=True, default=str))
