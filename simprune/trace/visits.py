"""The arguments and the output of every module in one forward pass."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core.batches import copied, first_tensor
from simprune.core.cost import Example
from simprune.trace.bypass import OutputLayout, layout_of
from simprune.trace.context import eval_mode, uncached
from simprune.trace.hooks import hooks


@dataclass
class Visit:
    """One module's part in a forward pass.

    `args`, `kwargs` and `returned` are the objects themselves, so that identity shows what was handed on; later modules
    may have changed them in place. `call` and `output` are copies from before that: of the arguments, and of the first
    tensor that the module returned. `calls` counts how often it ran; all else is of its last run.
    """

    args: tuple
    kwargs: dict
    call: Example
    calls: int = 1
    returned: Any = None
    output: Tensor | None = None

    def layout(self) -> OutputLayout:
        """How its outputs follow from its arguments; ValueError as `layout_of`."""
        return layout_of(self.args, self.kwargs, self.returned)

    @property
    def stream_key(self) -> int | str | None:
        """Position or name of the first argument that has the output's shape; None where there is none."""
        shape = None if self.output is None else self.output.shape
        return next((key for key, value in self.tensors.items() if value.shape == shape), None)

    @property
    def input(self) -> Tensor | None:
        """A copy of the argument at `stream_key`: what the module works on."""
        key = self.stream_key
        return None if key is None else self.tensors[key]

    @property
    def tensors(self) -> dict[int | str, Tensor]:
        """Copies of the arguments that are tensors, by position or name."""
        args, kwargs = self.call
        arguments = {**dict(enumerate(args)), **kwargs}
        return {key: value for key, value in arguments.items() if isinstance(value, Tensor)}


def visit(model: nn.Module, example: Example) -> dict[str, Visit]:
    """Visits of all modules with parameters, by name, in the order in which they begin; one forward pass.

    >>> visits = visit(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), ((torch.zeros(2, 4),), {}))
    >>> list(visits), visits["0"].output.shape
    (['0'], torch.Size([2, 3]))
    """
    visits: dict[str, Visit] = {}

    def before(name: str):
        def see(_: nn.Module, args: tuple, kwargs: dict) -> None:
            calls = visits[name].calls + 1 if name in visits else 1
            visits[name] = Visit(args, kwargs, copied((args, kwargs)), calls)

        return see

    def after(name: str):
        def see(_: nn.Module, args: tuple, kwargs: dict, returned: Any) -> None:
            output = first_tensor(returned)
            visits[name].returned, visits[name].output = returned, None if output is None else output.clone()

        return see

    watched = [(n, m) for n, m in model.named_modules() if n and next(m.parameters(), None) is not None]
    befores = [(module, before(name)) for name, module in watched]
    afters = [(module, after(name)) for name, module in watched]
    args, kwargs = example
    with eval_mode(model), uncached(model), torch.no_grad(), hooks(befores, afters):
        model(*args, **kwargs)
    return visits
