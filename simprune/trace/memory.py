"""Memory of activations: every storage is counted from the operation that allocates it until it is freed."""

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from simprune.core.cost import Example
from simprune.core.example import rows_of
from simprune.trace.context import eval_mode, uncached


class _Storages(TorchDispatchMode):
    """Counts the bytes of the storages that operations have allocated: all, and those alive, now and at the peak."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.alive = self.peak = self.total = 0
        self._known = known  # addresses of storages that are counted already, or never

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and not tensor.is_meta:
                self._follow(tensor.untyped_storage())
        return output

    def _follow(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self.alive += storage.nbytes()
            self.total += storage.nbytes()
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size


def peak_memory(model: nn.Module, example: Example) -> int:
    """The most bytes of activations that exist at the same time in a forward pass in evaluation mode, for one input.

    Counted are all results of operations, the output among them; not weights, inputs, and workspaces within kernels.

    Args:
        model: the network.
        example: its arguments; the peak is divided by their number of rows.

    Returns:
        Bytes, rounded up.

    >>> peak_memory(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), ((torch.zeros(1, 4),), {}))
    64
    """
    return -(-_followed(model, example).peak // rows_of(example))


GRAPH = 2**29  # bytes of activations that a pass with gradients may hold, beyond what the weights of the model say


def inputs_at_once(model: nn.Module, example: Example) -> int:
    """How many inputs can run together so that a pass with gradients holds little: `GRAPH`, or a quarter of the model.

    Such a pass holds at most all that its operations give, until it goes back.

    Args:
        model: the network.
        example: its arguments, of one input or several.

    >>> inputs_at_once(nn.Linear(4, 2**18), ((torch.zeros(1, 4),), {}))
    512
    """
    total = _followed(model, example).total / rows_of(example)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return max(1, int(max(GRAPH, weights // 4) // max(total, 1)))


def _followed(model: nn.Module, example: Example) -> _Storages:
    """The storages of a forward pass in evaluation mode."""
    args, kwargs = example
    known = [*model.parameters(), *model.buffers(), *tree_leaves((args, kwargs))]
    storages = _Storages({value.untyped_storage()._cdata for value in known if isinstance(value, Tensor)})
    with eval_mode(model), uncached(model), torch.no_grad(), storages:
        output = model(*args, **kwargs)
    del output
    return storages
