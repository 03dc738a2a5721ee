"""The outputs of a network as rows: which axis holds the features follows from the operations that made them.

A row is one position of one input, and its entries are features: channels of a map, classes of a token. So a constant
that the last layer adds to a feature adds nothing to the variance of the rows, in whatever layout the output comes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simprune.core.batches import call_all, copied
from simprune.core.example import example_of
from simprune.core.spread import Spread
from simprune.trace.caches import forgetting
from simprune.trace.context import eval_mode, requiring

# The axis of the features in the result of an operation, by how the name of its node in autograd's graph begins.
SECOND = ("Convolution", "NativeBatchNorm", "CudnnBatchNorm", "NativeGroupNorm", "Upsample", "AvgPool", "MaxPool")
LAST = ("Addmm", "Mm", "Bmm", "Baddbmm", "NativeLayerNorm", "FusedRmsNorm", "Embedding")
VIEWS = ("View", "ReshapeAlias", "UnsafeView", "Squeeze", "Unsqueeze")
GONE, MIXED = "gone", "mixed"  # an axis that the output does not have, or has as a part of another axis
STEPS = 64  # operations between the last layer and an output


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
    """How the outputs of a model become rows, by name, from the graph of the operations that made them.

    Where there is no graph, or a view mixes features with positions, features are the second of four axes or more, and
    the last of fewer. One forward pass on two inputs of a batch.

    >>> rows_of_outputs(nn.Conv1d(2, 3, 1), torch.zeros(2, 2, 8))
    {'output': Rows(axis=1, shuffle=1)}
    """
    with eval_mode(model), torch.inference_mode(False), torch.enable_grad(), requiring(model, *model.parameters()):
        args, kwargs = copied(example_of(batch))  # tensors of inference mode take no part in a graph
        with forgetting(model):
            outputs = call_all(model, (args, None) if args else kwargs)
        return {name: _rows(value) for name, value in outputs.items()}


def _rows(value: Tensor) -> Rows:
    known = _walk(value) if value.ndim > 1 else None
    return known or Rows(1 if value.ndim >= 4 else -1)


def _walk(output: Tensor) -> Rows | None:
    """Follow the graph back to the last layer; None where it does not tell which axis holds the features."""
    places: list[int | str] = [*range(output.ndim)]  # of every axis of the tensor at hand: the output's axis
    node: Any = output.grad_fn
    for _ in range(STEPS):
        if node is None:
            return None
        name, shape = node.name(), _shape(node)
        if name.startswith("PixelShuffle") and places == [0, 1, 2, 3]:
            return Rows(1, node._saved_upscale_factor)
        if name.startswith((*SECOND, *LAST)) or "Pool" in name:
            axis = places[-1 if name.startswith(LAST) else 1]
            return Rows(None) if axis == GONE else Rows(int(axis)) if axis not in (0, MIXED) else None
        before = _before(node, shape)
        if before is None:
            return None
        wanted = _shape(before)
        if name.startswith("Permute"):
            dims = [_axis(dim, len(shape)) for dim in node._saved_dims]
            places = [places[dims.index(axis)] for axis in range(len(dims))]
        elif name.startswith("Transpose"):
            first, second = (_axis(dim, len(shape)) for dim in (node._saved_dim0, node._saved_dim1))
            places[first], places[second] = places[second], places[first]
        elif name.startswith(VIEWS):
            places = _through_view(places, shape, wanted)
        elif name.startswith("Select"):
            places.insert(_axis(node._saved_dim, len(wanted)), GONE)
        elif len(wanted) != len(shape):
            return None
        node = before
    return None


def _axis(dim: int, ndim: int) -> int:
    """An axis that autograd saved, where negative numbers may have become unsigned ones."""
    return (dim - 2**64 if dim >= 2**63 else dim) % ndim


def _shape(node: Any) -> tuple[int, ...]:
    """The shape of the tensor that a node of the graph made."""
    return tuple(node._input_metadata[0].shape)


def _before(node: Any, shape: tuple[int, ...]) -> Any | None:
    """The node that made the tensor an operation works on: of several, the first of the result's shape."""
    nodes = [item for item, _ in node.next_functions if item is not None and not item.name().endswith("AccumulateGrad")]
    return next((item for item in nodes if _shape(item) == shape), next(iter(nodes), None))


def _through_view(places: list[int | str], after: Sequence[int], before: Sequence[int]) -> list[int | str]:
    """The places of the axes before a view: of those that it leaves whole."""
    result: list[int | str] = [GONE if size == 1 else MIXED for size in before]
    i = j = 0
    while i < len(before) and j < len(after):
        first, second = i, j
        left, right = before[i], after[j]
        while left != right:
            if left < right:
                i += 1
                left *= before[i]
            else:
                j += 1
                right *= after[j]
        i, j = i + 1, j + 1
        olds = [axis for axis in range(first, i) if before[axis] > 1] or [first]
        news = [axis for axis in range(second, j) if after[axis] > 1] or [second]
        if len(olds) == len(news) == 1:
            result[olds[0]] = places[news[0]]
    return result
