"""What every module got and gave in one forward pass."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core.batches import copied, first_tensor
from simprune.core.cost import Example
from simprune.trace.bypass import Layout, layout_of
from simprune.trace.context import eval_mode, uncached
from simprune.trace.hooks import hooks


@dataclass
class Visit:
    """What one module got and gave in one forward pass; `given` and `made` are copies of the stream through it.

    `again`: copies of the arguments, from before anything changed them in place.
    """

    args: tuple
    kwargs: dict
    again: Example
    calls: int = 1
    output: Any = None
    made: Tensor | None = None

    def layout(self) -> Layout:
        """How its outputs follow from its arguments; ValueError as `layout_of`."""
        return layout_of(self.args, self.kwargs, self.output)

    @property
    def stream(self) -> int | str | None:
        """Name or position of the argument that the module works on; None where there is no such argument."""
        shape = None if self.made is None else self.made.shape
        return next((key for key, value in self.tensors.items() if value.shape == shape), None)

    @property
    def given(self) -> Tensor | None:
        key = self.stream
        return None if key is None else self.tensors[key]

    @property
    def tensors(self) -> dict[int | str, Tensor]:
        """Copies of the arguments that are tensors, by position or name."""
        args, kwargs = self.again
        given = {**dict(enumerate(args)), **kwargs}
        return {key: value for key, value in given.items() if isinstance(value, Tensor)}


def visit(model: nn.Module, example: Example) -> dict[str, Visit]:
    """One forward pass: every module with parameters, in the order in which they begin."""
    visits: dict[str, Visit] = {}

    def before(name: str):
        def see(_: nn.Module, args: tuple, kwargs: dict) -> None:
            calls = visits[name].calls + 1 if name in visits else 1
            visits[name] = Visit(args, kwargs, copied((args, kwargs)), calls)

        return see

    def after(name: str):
        def see(_: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            made = first_tensor(output)
            visits[name].output, visits[name].made = output, None if made is None else made.clone()

        return see

    watched = [(n, m) for n, m in model.named_modules() if n and next(m.parameters(), None) is not None]
    args, kwargs = example
    with (
        eval_mode(model),
        uncached(model),
        torch.no_grad(),
        hooks(
            [(module, before(name)) for name, module in watched], [(module, after(name)) for name, module in watched]
        ),
    ):
        model(*args, **kwargs)
    return visits
