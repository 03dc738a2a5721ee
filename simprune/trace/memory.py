"""Peak memory of activations: tensors are followed through one forward pass from the operation that makes them."""

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from simprune.core.cost import Example
from simprune.core.example import rows_of
from simprune.trace.context import eval_mode


class _Storages(TorchDispatchMode):
    """Bytes of all storages that operations have made and that are still alive, and the most there ever were."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known = known  # storages that are not counted, or already are

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
        return made

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)

        def gone() -> None:
            self._known.discard(key)
            self.alive -= size

        weakref.finalize(storage, gone)


def peak_memory(model: nn.Module, example: Example) -> int:
    """Most bytes of activations alive at once in a forward pass in evaluation mode, for one input.

    Everything that operations make counts, down to the output; weights and the input do not, nor does what a kernel
    uses inside. It is the peak over the example's rows divided by their number.

    >>> peak_memory(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), ((torch.zeros(1, 4),), {}))
    64
    """
    args, kwargs = example
    known = [*model.parameters(), *model.buffers(), *tree_leaves((args, kwargs))]
    keys = {value.untyped_storage()._cdata for value in known if isinstance(value, Tensor)}
    storages = _Storages(keys)
    with eval_mode(model), torch.no_grad(), storages:
        output = model(*args, **kwargs)
    del output
    return -(-storages.peak // rows_of(example))
