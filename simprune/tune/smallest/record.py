"""The folder of a search: every finished attempt, the log of its training, and the weights of the best model so far.

`state.json` is replaced as a whole after every attempt, when the weights that it names have been written. Whenever the
search is interrupted, the folder is therefore that of some finished attempt. It holds data only, no pickle. The state
holds the hash of the weights, and of itself.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_model
from torch import nn

from simprune.core import processes
from simprune.core.checkpoint import refuse_other_settings
from simprune.core.plan import Plan
from simprune.core.reading import read_text
from simprune.core.store import refuse_links, write_whole
from simprune.core.weights import load_weights
from simprune.edit.apply import apply
from simprune.trace.network import Network
from simprune.tune.smallest.attempts import Attempt

FORMAT = 2
STATE = "state.json"


@dataclass(frozen=True)
class Record:
    """The folder of a search; `context`: further settings that must be the same when the search is resumed.

    Of several processes the first alone reads and writes; all know what it has read.
    """

    folder: Path
    context: Mapping[str, Any] = field(default_factory=dict)

    def __fspath__(self) -> str:
        return str(self.folder)

    def load(self, settings: Mapping[str, Any]) -> list[Attempt]:
        """The finished attempts; none for a new folder.

        Args:
            settings: of the search; those in the folder must equal them.

        Raises:
            ValueError: for a folder that holds something else, a search with other settings, or links.
        """
        return processes.once(lambda: self._load(settings))

    def _load(self, settings: Mapping[str, Any]) -> list[Attempt]:
        path = self.folder / STATE
        refuse_links(path, *self.folder.glob("step-*"))
        if not path.is_file():
            if self.folder.is_dir() and any(not path.name.startswith(".") for path in self.folder.iterdir()):
                raise ValueError(f"{self.folder} is not empty and holds no search; give the search a folder of its own")
            return []
        state = self._state()
        refuse_other_settings(self.folder, state["settings"], self._settings(settings))
        return [Attempt(**attempt) for attempt in state["steps"]]

    def _state(self) -> dict[str, Any]:
        """The content of the state file, unchanged since it was written."""
        path = self.folder / STATE
        try:
            state = json.loads(read_text(path))
            state["settings"] = dict(state["settings"])
            for attempt in state["steps"]:
                Attempt(**attempt)
            if state["simprune_search"] != FORMAT:
                raise ValueError(f"format {state['simprune_search']}")
            if state.pop("digest") != _digest(state):
                raise ValueError("it has changed since it was written")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is not the state of a search of this simprune ({error})") from None
        return state

    def save(
        self, settings: Mapping[str, Any], attempts: Sequence[Attempt], best: int | None, model: nn.Module
    ) -> None:
        """Write the attempts, and if the last one is the best so far the weights of `model`; delete older weights."""
        if not processes.first():
            return
        name = f"step-{best}.safetensors" if best else None
        content = {
            "simprune_search": FORMAT,
            "settings": self._settings(settings),
            "steps": [asdict(attempt) for attempt in attempts],
            "weights": name,
            "sha256": None,
        }
        if name is not None and best == len(attempts) - 1:
            write_whole(self.folder / name, lambda path: save_model(model, str(path)))
            content["sha256"] = _sha256(self.folder / name)
        elif name is not None:
            content["sha256"] = self._state()["sha256"]
        content["digest"] = _digest(content)
        write_whole(self.folder / STATE, json.dumps(content, indent=1, allow_nan=False) + "\n")
        for path in self.folder.glob("step-*.safetensors"):
            if path.name != name:
                path.unlink()

    def model(self, index: int, plan: Plan, network: Network) -> nn.Module:
        """Rebuild the model of an attempt on the original, from its plan and the stored weights.

        Raises:
            ValueError: when the weights are not those that the search stored.
        """
        small = apply(plan, network)
        small.load_state_dict(processes.once(lambda: self._weights(index, small)))
        return small.eval()

    def _weights(self, index: int, small: nn.Module) -> dict[str, Any]:
        path = self.folder / f"step-{index}.safetensors"
        state = self._state()
        if state["weights"] != path.name or not path.is_file() or _sha256(path) != state["sha256"]:
            raise ValueError(f"{path} is missing or has changed since it was stored; start the search in a new folder")
        load_weights(small, path)
        return small.state_dict()

    def training(self, index: int) -> Path:
        """The folder of the training of an attempt: its log, and until it is finished what it would go on from."""
        return self.folder / f"step-{index}"

    def _settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return json.loads(json.dumps({**settings, **self.context}, sort_keys=True, default=str))


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
