"""The outputs of a network as rows: which axis holds the features follows from the trace (`simprune.trace.axes`).

A row is one position of one input, and its entries are features: channels of a map, classes of a token. So a constant
that the last layer adds to a feature adds nothing to the variance of the rows, in whatever layout the output comes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simprune.core.batches import all_tensors, copied, device_of, move
from simprune.core.example import example_of
from simprune.core.spread import Spread
from simprune.trace.axes import Following, follow


@dataclass(frozen=True)
class Rows:
    """How one output becomes rows.

    Args:
        axis: of the features; None where every entry is a row of its own, such as the pixels of a depth map (N, H, W).
        shuffle: factor of a pixel shuffle behind the last layer; its features are the channels before the shuffle.

    >>> Rows(1).of(torch.zeros(2, 3, 4, 5)).shape, Rows(-1).of(torch.zeros(2)).shape
    (torch.Size([40, 3]), torch.Size([2, 1]))
    """

    axis: int | None = -1
    shuffle: int = 1

    def of(self, value: Tensor) -> Tensor:
        """(rows, features) of an output; the rows of an input follow each other."""
        if value.ndim == 1 or self.axis is None:
            return value.reshape(-1, 1)
        if self.shuffle > 1:
            value = F.pixel_unshuffle(value, self.shuffle)
        return value.movedim(self.axis, -1).flatten(0, -2)

    def back(self, rows: Tensor, shape: Sequence[int]) -> Tensor:
        """The output of this shape that has these rows."""
        if len(shape) == 1 or self.axis is None:
            return rows.reshape(shape)
        before = list(shape)
        if self.shuffle > 1:
            before[1:] = [shape[1] * self.shuffle**2, *(size // self.shuffle for size in shape[2:])]
        features = before.pop(self.axis)
        value = rows.reshape(*before, features).movedim(-1, self.axis)
        return F.pixel_shuffle(value, self.shuffle) if self.shuffle > 1 else value


def counted(value: Tensor, mask: Tensor | None) -> Tensor | None:
    """(rows,) true for tokens and false for padding, for an output that a mask (N, T) fits; None for any other one."""
    if mask is None or value.ndim < 2 or value.shape[:2] != mask.shape or value[0, 0].numel() == 0:
        return None
    return mask.flatten().to(value.device) if value.ndim <= 3 else None


def add_rows(
    spreads: dict[str, Spread], outputs: Mapping[str, Tensor], rows: Mapping[str, Rows], mask: Tensor | None
) -> None:
    """Add one batch of outputs to the variance of every output, without padding."""
    for name, entries in as_rows(outputs, rows, mask).items():
        spreads.setdefault(name, Spread()).update(entries)


def as_rows(outputs: Mapping[str, Tensor], rows: Mapping[str, Rows], mask: Tensor | None) -> dict[str, Tensor]:
    """(rows, features) of every output, by name, without padding; of complex numbers, both parts are features.

    Raises:
        ValueError: for other outputs than those that `rows` tells of.
    """
    if outputs.keys() != rows.keys():
        raise ValueError(f"the network returns {[*rows]} for one batch and {[*outputs]} for another one")
    entries = {name: rows[name].of(value.detach()) for name, value in outputs.items()}
    entries = {n: torch.view_as_real(v).flatten(1) if v.is_complex() else v for n, v in entries.items()}
    tokens = {name: counted(value, mask) for name, value in outputs.items()}
    return {name: value if tokens[name] is None else value[tokens[name]] for name, value in entries.items()}


def shares_of(spreads: Mapping[str, Spread], weights: Mapping[str, float] | None = None) -> dict[str, float]:
    """What the summed squared changes of an output are multiplied with, by name, to be its part of the damage.

    Outputs that never change, or whose weight is 0, have none. Every other one counts as a share of its own variance,
    times its weight as a share of all weights.

    Args:
        spreads: of the outputs.
        weights: of outputs, by name; those that it does not name have the weight 1.

    >>> rows = Spread().update(torch.tensor([[0.0], [2.0]]))  # squared deviations: 2
    >>> shares_of({"main": rows, "aux": rows}, {"main": 3})
    {'main': 0.375, 'aux': 0.125}
    """
    moving = {name: spread.squares for name, spread in spreads.items() if spread.squares > 0}
    weighed = weighted(moving, weights)
    return {name: weight / moving[name] for name, weight in weighed.items()}


def weighted(names: Iterable[str], weights: Mapping[str, float] | None) -> dict[str, float]:
    """The weights of some outputs as shares of their sum, by name; outputs of weight 0 are left out."""
    known = {name: float((weights or {}).get(name, 1.0)) for name in names}
    return {name: weight / sum(known.values()) for name, weight in known.items() if weight > 0}


def rows_of_outputs(model: nn.Module, batch: Any) -> dict[str, Rows]:
    """How the outputs of a model become rows, by name, from where the trace says that their channels lie.

    Where it does not say it, or a view mixes features with positions, features are the second of four axes or more, and
    the last of fewer. One forward pass on two inputs of a batch.

    >>> rows_of_outputs(nn.Conv1d(2, 3, 1), torch.zeros(2, 2, 8))
    {'output': Rows(axis=1, shuffle=1)}
    """
    with torch.inference_mode(False):
        _, result, following = follow(model, move(copied(example_of(batch)), device_of(model)))
    return {name: _rows(value, following) for name, value in all_tensors(result).items()}


def _rows(value: Tensor, following: Following) -> Rows:
    axis = following.axes.get(value)
    if value.ndim > 1 and value in following.gone:
        return Rows(None)
    if value.ndim > 1 and axis:  # inputs lie along the first one
        return Rows(axis, following.shuffled.get(value, 1))
    return Rows(1 if value.ndim >= 4 else -1)
