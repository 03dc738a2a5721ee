"""The arguments and the output of every module in one forward pass."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core.batches import copied, first_tensor
from simprune.core.cost import Example
from simprune.trace.bypass import OutputLayout
from simprune.trace.context import eval_mode, uncached
from simprune.trace.hooks import hooks
from simprune.trace.rewritten import parametrizations


@dataclass
class Visit:
    """One module's part in a forward pass.

    `args`, `kwargs` and `returned` are the objects themselves, so that identity shows what was handed on; later modules
    may have changed them in place. `call` and `output` are copies from before that: of the arguments, and of the first
    tensor that the module returned. `calls` counts how often it ran; all else is of its last run. `carried` is the
    argument that a shortcut carries to the output, where several arguments have the output's shape. `axis` is the
    dimension along which the output's channels lie, where it is known (see `simprune.trace.axes`).

    >>> x, bias = torch.ones(2), torch.ones(3)
    >>> visit = Visit((x,), {"bias": bias}, ((x,), {"bias": bias}), returned=(x + 1, bias, None), output=x + 1)
    >>> visit.layout(), visit.stream_key
    ((0, 'bias', None), 0)
    """

    args: tuple
    kwargs: dict
    call: Example
    calls: int = 1
    returned: Any = None
    output: Tensor | None = None
    carried: int | str | None = None
    axis: int | None = None

    def layout(self) -> OutputLayout:
        """Which arguments its outputs are, by identity; the first output is the stream, at `stream_key`.

        Raises:
            ValueError: where it returned neither a tensor nor a tuple that begins with one, and where no argument has
                its output's shape.
        """
        several = isinstance(self.returned, tuple | list)
        outputs = tuple(self.returned) if several else (self.returned,)
        if not outputs or not isinstance(outputs[0], Tensor):
            kind = type(self.returned).__name__
            raise ValueError(f"it returns a {kind} and not a tensor, or a tuple that begins with one")
        stream = self.stream_key
        if stream is None:
            raise ValueError("it gets no tensor of its output's shape")
        keys = {id(value): key for key, value in [*enumerate(self.args), *self.kwargs.items()] if value is not None}
        return (stream, *(keys.get(id(value)) for value in outputs[1:])) if several else stream

    @property
    def stream_key(self) -> int | str | None:
        """Position or name of the argument that a shortcut carries, or else of the first that has the output's shape.

        None where no argument has it.
        """
        return next(iter(self.alike), None) if self.carried is None else self.carried

    @property
    def alike(self) -> dict[int | str, Tensor]:
        """Copies of the arguments that have the output's shape, by position or name."""
        shape = None if self.output is None else self.output.shape
        return {key: value for key, value in self.tensors.items() if value.shape == shape}

    @property
    def input(self) -> Tensor | None:
        """A copy of the argument at `stream_key`: what the module works on."""
        key = self.stream_key
        return None if key is None else self.tensors[key]

    @property
    def tensors(self) -> dict[int | str, Tensor]:
        """Copies of the arguments that are tensors, by position or name."""
        args, kwargs = self.call
        return {key: value for key, value in [*enumerate(args), *kwargs.items()] if isinstance(value, Tensor)}


def visit(model: nn.Module, example: Example) -> dict[str, Visit]:
    """Visits of all modules with parameters, by name, in the order in which they begin; one forward pass.

    Parametrizations, such as weight_norm, work on weights and are no part of the path of the data.

    >>> visits = visit(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), ((torch.zeros(2, 4),), {}))
    >>> list(visits), visits["0"].output.shape
    (['0'], torch.Size([2, 3]))
    """
    visits: dict[str, Visit] = {}

    def before(name: str, _: nn.Module, args: tuple, kwargs: dict) -> None:
        calls = visits[name].calls + 1 if name in visits else 1
        visits[name] = Visit(args, kwargs, copied((args, kwargs)), calls)

    def after(name: str, _: nn.Module, args: tuple, kwargs: dict, returned: Any) -> None:
        output = first_tensor(returned)
        visits[name].returned, visits[name].output = returned, None if output is None else output.clone()

    of_weights = parametrizations(model)
    named = [(name, module) for name, module in model.named_modules() if name and module not in of_weights]
    watched = [(name, module) for name, module in named if next(module.parameters(), None) is not None]
    befores, afters = ([(module, partial(see, name)) for name, module in watched] for see in (before, after))
    args, kwargs = example
    with eval_mode(model), uncached(model), torch.no_grad(), hooks(befores, afters):
        model(*args, **kwargs)
    return visits
