"""Whether several processes, which share out their work, have the same model and the same batches."""

from typing import Any

from torch import nn

from simprune.core import processes
from simprune.core.batches import tensors_in
from simprune.core.peekable import Peekable
from simprune.core.weights import digest, digest_of


def require_same(model: nn.Module, *data: Peekable) -> None:
    """Raise ValueError where several processes have other weights of the model, or other first batches.

    >>> require_same(nn.Linear(2, 1), Peekable([(1, 2)], "test"))
    """
    if processes.count() == 1:
        return
    processes.same("the weights of the model", digest(model), "load the same, or set one seed before it is built")
    for batches in data:
        require_same_batch(batches.name, batches.first)


def require_same_batch(name: str, batch: Any) -> None:
    """Raise ValueError where several processes have other inputs or labels in a batch.

    Args:
        name: of the batches, in the message.
        batch: with its labels.

    >>> require_same_batch("test", (1, 2))
    """
    if processes.count() == 1:
        return
    tensors = {str(number): tensor for number, tensor in enumerate(tensors_in(batch))}
    advice = "give all of them the same batches in the same order: simprune shares them out"
    processes.same(f"the {name} batches", digest_of(tensors), advice)
