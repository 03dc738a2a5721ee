"""Calls of a module in both networks on one batch, and which rows of its activations count."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from simprune.core.batches import first_tensor
from simprune.core.cost import Example
from simprune.core.holdout import held_out


@dataclass(frozen=True)
class Batch:
    """What is known of one batch: how many inputs come before it, how many it has, and the mask of every module."""

    first: int
    inputs: int
    mask: Callable[[str], Tensor | None]

    def held_out(self, value: Tensor, mask: Tensor | None) -> Tensor:
        """Which rows of an activation, inputs first, are held out; of tokens, without padding."""
        held = held_out(self.first, self.inputs, len(value))
        masked = mask is not None and is_masked(value, mask)
        return held[:, None].expand(mask.shape)[mask.cpu()] if masked and mask is not None else held


Calls = tuple[Example, Example, Batch]  # of a module on one batch: the original's and the pruned network's arguments


def is_masked(value: Tensor, mask: Tensor) -> bool:
    """Whether a value is tokens (N, T, D) of which a mask (N, T) tells the padding."""
    return value.ndim == 3 and value.shape[:2] == mask.shape


def unpadded(value: Tensor, mask: Tensor | None) -> Tensor:
    """Tokens (N, T, D) without the padding, as (tokens, D); anything else as it is."""
    return value[mask.to(value.device)] if mask is not None and is_masked(value, mask) else value


def inputs_first(value: Tensor, batch: int) -> Tensor:
    """An activation whose inputs lie along dimension `batch`, with that dimension first."""
    return value.movedim(batch, 0)


def tensor_of(call: Example) -> Tensor:
    """The first tensor among a module's arguments."""
    value = first_tensor(call)
    assert value is not None
    return value
