"""What makes a training repeatable: every epoch begins with random states and an order of its own number alone."""

# ruff: noqa: NPY002 - data sets draw from numpy's global state, which is set here and comes back

import json
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

INSIDE = ("batches", "dataset", "sampler", "batch_sampler")  # attributes of loaders that may know of epochs


@contextmanager
def own_randomness() -> Iterator[None]:
    """After the block the random states of torch, numpy and Python are those from before it.

    >>> before = random.getstate()
    >>> with own_randomness():
    ...     value = random.random()
    >>> random.getstate() == before
    True
    """
    ours, theirs = np.random.get_state(), random.getstate()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            np.random.set_state(ours)
            random.setstate(theirs)


def begin_epoch(batches: Iterable, seed: int, epoch: int) -> None:
    """Set all random states, and the order of the next walk over the batches, by seed and epoch.

    A loader of torch that shuffles draws its order from these states, or from a generator of its own, which is seeded.
    `set_epoch` is called on what has it: `simprune.sources.Batches`, samplers of several processes, and data sets.

    Args:
        batches: that will be walked.
        seed: of the training.
        epoch: its number; 0 for what precedes the first.
    """
    number = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)
    _set_epoch(batches, number, epoch, set())


def _set_epoch(part: Any, number: int, epoch: int, visited: set[int]) -> None:
    if id(part) in visited:
        return
    visited.add(id(part))
    if callable(getattr(part, "set_epoch", None)):
        part.set_epoch(epoch)
    generator = getattr(part, "generator", None)
    if isinstance(generator, torch.Generator):
        generator.manual_seed(number)
    for name in INSIDE:
        inner = getattr(part, name, None)
        if inner is not None and not isinstance(inner, Tensor):
            _set_epoch(inner, number, epoch, visited)


def random_states() -> dict[str, Tensor]:
    """The random states of torch, numpy and Python, as tensors."""
    kind, keys, *rest = np.random.get_state()
    version, words, gauss = random.getstate()
    states = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64))}
    said = json.dumps({"numpy": [kind, *rest], "python": [version, words, gauss]}, default=int)
    states["said"] = torch.tensor(list(said.encode()), dtype=torch.uint8)
    if torch.cuda.is_available():
        states |= {f"cuda{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def set_random_states(states: dict[str, Tensor]) -> None:
    """Go on from what `random_states` returned.

    >>> with own_randomness():
    ...     states = random_states()
    ...     drawn = random.random(), np.random.rand(), float(torch.rand(()))
    ...     set_random_states(states)
    ...     drawn == (random.random(), np.random.rand(), float(torch.rand(())))
    True
    """
    said = json.loads(bytes(states["said"].tolist()).decode())
    kind, *rest = said["numpy"]
    version, words, gauss = said["python"]
    torch.set_rng_state(states["torch"])
    np.random.set_state((kind, states["numpy"].numpy().astype(np.uint32), *rest))
    random.setstate((version, tuple(words), gauss))
    for index in range(torch.cuda.device_count() if "cuda0" in states else 0):
        torch.cuda.set_rng_state(states[f"cuda{index}"], index)
