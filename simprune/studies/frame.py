"""What every study is handed: images, trained networks, and steps that are computed once and stored."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import nn

from simprune.core.plain import finite
from simprune.core.progress import progress
from simprune.core.reading import read_text
from simprune.core.store import write_whole
from simprune.core.weights import digest, load_weights
from simprune.sources import model_from
from simprune.studies.code import code_of_networks, code_of_study
from simprune.studies.findings import Figure, Findings, Table
from simprune.studies.images import Images, read_images
from simprune.studies.networks import answers, build, train

__all__ = ["Figure", "Findings", "Images", "Run", "Subject", "Table"]

T = TypeVar("T")


@dataclass(frozen=True)
class Subject:
    """A trained network that a study looks at.

    Args:
        name: unique within the study.
        architecture: its kind, by which results are grouped.
        model: in evaluation mode; studies do not change it.
        key: by which stored steps know it.
    """

    name: str
    architecture: str
    model: nn.Module = field(repr=False)
    key: str


@dataclass
class Run:
    """One run of a study.

    Args:
        folder: of this study; finished steps and results are stored there.
        networks_folder: of trained networks, which all studies share.
        quick: whether the study is the small one.
        data: where images are; None for scikit-learn's digits.
        size: pixels of a side; None for those that the images have.
        models: functions that make networks of the user's, or their names `package.module:function`.
        training: steps of every network's training; None for as many as the images need.
        seed: of everything random.
        code: digest of the code that computes the steps; by default that of simprune.
    """

    folder: Path
    networks_folder: Path
    quick: bool = False
    data: str | None = None
    size: int | None = None
    models: Sequence[Any] = ()
    training: int | None = None
    seed: int = 0
    code: str = field(default_factory=code_of_study)

    @cached_property
    def images(self) -> Images:
        """The images that networks are trained and tested on."""
        return read_images(self.data, self.size)

    @cached_property
    def _shared(self) -> dict[str, Any]:
        """What every step depends on, beside its key and the code."""
        return {"images": self.images.digest, "seed": self.seed}

    @property
    def steps(self) -> Path:
        """The folder of finished steps that this code has computed."""
        return self.folder / "steps" / self.code

    def step(self, key: Any, function: Callable[[], T]) -> T:
        """The result of one unit of work: stored when it is computed, read when the run goes on.

        Args:
            key: a name, or a list or mapping of whatever JSON can hold; all that the result depends on beside the
                images, the seed and the code.
            function: computes the result, which JSON can hold.

        Returns:
            The result as JSON gives it back: tuples are lists, NaN is None.

        Raises:
            ValueError: for a stored step that cannot be read.
        """
        text = json.dumps(key, sort_keys=True)
        path = self.steps / f"{_hash([self._shared, key])}.json"
        if path.is_file():
            try:
                stored = json.loads(read_text(path))
                if stored["key"] == json.loads(text):
                    return stored["result"]
            except (json.JSONDecodeError, KeyError, TypeError):
                raise ValueError(
                    f"{path} holds no step of a study; delete it, and the step is computed again"
                ) from None
        content = json.dumps({"key": json.loads(text), "result": finite(function())}, allow_nan=False)
        write_whole(path, content)
        return json.loads(content)["result"]

    def progress(self, items: Iterable[T], what: str) -> Iterator[T]:
        """The same items, with a bar or lines that say how far the work is."""
        return progress(items, what)

    def seed_of(self, *key: Any) -> int:
        """A seed that depends on the run's and on a key.

        >>> run = Run(Path("a"), Path("b"))
        >>> run.seed_of("draw", 1) == run.seed_of("draw", 1) != run.seed_of("draw", 2)
        True
        """
        return int(_hash([self.seed, *key])[:8], 16)

    def generator(self, *key: Any) -> torch.Generator:
        """A source of random numbers that depends on the run's seed and a key."""
        return torch.Generator().manual_seed(self.seed_of(*key))

    def network(
        self,
        architecture: str,
        seed: int = 0,
        *,
        images: Images | None = None,
        width: float = 1.0,
        depth: float = 1.0,
        **training: Any,
    ) -> nn.Module:
        """A network, trained when it is first asked for, and stored.

        Args:
            architecture: a name in `simprune.studies.networks.ARCHITECTURES`.
            seed: of its first weights and its training.
            images: other images to train on than the run's.
            width, depth: factors of the usual channels and layers.
            training: arguments of `simprune.studies.networks.train`, such as `steps` and `augment`.

        Returns:
            The network in evaluation mode; every call makes a new object.
        """
        images = self.images if images is None else images
        if self.training is not None:
            training.setdefault("steps", self.training)
        changes = {"width": width, "depth": depth, **training}
        key = [code_of_networks(), architecture, seed, self.seed, changes, images.digest]
        path = self.networks_folder / f"{architecture}-{seed}-{_hash(key)}.safetensors"
        first = 1000 * self.seed + seed
        model = build(architecture, images, first, width, depth)
        if path.is_file():
            load_weights(model, path)
            return model.eval()
        for _ in progress([None], f"train {architecture} {seed}"):
            train(model, images, first, **training)
        state = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
        write_whole(path, lambda partial: save_file(state, partial))
        return model

    def subjects(self, architectures: Sequence[str], seeds: int, **changes: Any) -> Sequence[Subject]:
        """The user's own networks, or where there are none, trained ones of every architecture and seed.

        They are trained one by one, when they are asked for: all architectures of one seed before those of the next.
        """
        if self.models:
            return self.own
        return _Trained(self, [(name, seed) for seed in range(seeds) for name in architectures], changes)

    @cached_property
    def own(self) -> list[Subject]:
        """The user's networks.

        Raises:
            ValueError: for a function that is not there, and a network that does not classify the images.
        """
        return [self._own(number, model) for number, model in enumerate(self.models)]

    def _own(self, number: int, function: Any) -> Subject:
        model = model_from(function) if isinstance(function, str) else function().eval()
        name = function if isinstance(function, str) else getattr(function, "__name__", type(model).__name__)
        try:
            shape = tuple(answers(model, self.images.test[:2]).shape)
        except RuntimeError as error:
            raise ValueError(
                f"models: {name} does not take images of {list(self.images.test.shape[1:])}: {error}"
            ) from None
        if shape != (2, self.images.classes):
            raise ValueError(
                f"models: {name} must give {self.images.classes} scores an image; got {list(shape)} for two"
            )
        return Subject(f"{number + 1} {name}", type(model).__name__, model, digest(model)[:16])

    @property
    def described(self) -> Mapping[str, Any]:
        """How it was run, for results."""
        return {"quick": self.quick, "images": self.images.name, "train": len(self.images.train),
                "test": len(self.images.test), "pixels": self.images.side, "seed": self.seed}  # fmt: skip


class _Trained(Sequence[Subject]):
    """Networks that are trained, or read, at the moment when they are asked for."""

    def __init__(self, run: Run, wanted: Sequence[tuple[str, int]], changes: Mapping[str, Any]):
        self.run, self.wanted, self.changes = run, wanted, dict(changes)

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        architecture, seed = self.wanted[number]
        training = {} if self.run.training is None else {"training": self.run.training}
        key = json.dumps([architecture, seed, training | self.changes])
        model = self.run.network(architecture, seed, **self.changes)
        return Subject(f"{architecture} {seed}", architecture, model, key)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:20]
