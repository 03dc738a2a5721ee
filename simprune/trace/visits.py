"""The arguments and the output of every module in one forward pass."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core.batches import all_tensors, first_tensor
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
    dimension along which the output's channels lie, where it is known (see `simprune.trace.axes`). Of a light visit all
    tensors are on the meta device, but for what a module returned that others got.

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
    return _visited(model, example, light=False)[0]


def visit_lightly(model: nn.Module, example: Example) -> tuple[dict[str, Visit], dict[str, Tensor]]:
    """As `visit`, with light visits of the layers that multiply with weights, and all outputs of the model by name.

    These layers give most of what a pass computes, such as the logits of all tokens; of them only shapes are needed.

    >>> visits, outputs = visit_lightly(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), ((torch.zeros(2, 4),), {}))
    >>> visits["0"].output.device.type, list(outputs)
    ('meta', ['output'])
    """
    return _visited(model, example, light=True)


def _visited(model: nn.Module, example: Example, light: bool) -> tuple[dict[str, Visit], dict[str, Tensor]]:
    visits: dict[str, Visit] = {}
    returned_by: dict[str, weakref.ref[Tensor]] = {}  # of light visits
    copies = _Copies()

    def before(name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        calls = visits[name].calls + 1 if name in visits else 1
        if light and _multiplies(module):
            args, kwargs = _mapped((args, kwargs), _shape_of)
            visits[name] = Visit(args, kwargs, (args, kwargs), calls)
        else:
            visits[name] = Visit(args, kwargs, copies.of((args, kwargs)), calls)

    def after(name: str, module: nn.Module, args: tuple, kwargs: dict, returned: Any) -> None:
        output, seen = first_tensor(returned), visits[name]
        if light and _multiplies(module):
            seen.returned = _mapped(returned, _shape_of)
            seen.output = None if output is None else _shape_of(output)
            if isinstance(returned, Tensor):
                returned_by[name] = weakref.ref(returned)
        else:
            seen.returned, seen.output = returned, None if output is None else copies.of(output)

    of_weights = parametrizations(model)
    named = [(name, module) for name, module in model.named_modules() if name and module not in of_weights]
    watched = [(name, module) for name, module in named if next(module.parameters(), None) is not None]
    befores, afters = ([(module, partial(see, name)) for name, module in watched] for see in (before, after))
    args, kwargs = example
    with eval_mode(model), uncached(model), torch.no_grad(), hooks(befores, afters):
        outputs = all_tensors(model(*args, **kwargs))
    for name, reference in returned_by.items():
        if (returned := reference()) is not None:  # a visit that is not light holds it: identity shows what was passed
            visits[name].returned = returned
    for seen in visits.values():
        seen.call, seen.output = _mapped(seen.call, copies.spared), _mapped(seen.output, copies.spared)
    return visits, outputs


class _Copies:
    """Copies of tensors as they are at the moment, one of every state of a tensor."""

    def __init__(self) -> None:
        self._states: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # (id, version) -> the tensor, its copy
        self._originals: dict[int, tuple[Tensor, int]] = {}  # id of a copy -> the tensor, its version then

    def of(self, value: Any) -> Any:
        """The same arguments with copies of their tensors and containers."""
        return _mapped(value, self._copy)

    def _copy(self, tensor: Tensor) -> Tensor:
        if tensor.is_inference():  # it counts no versions
            return tensor.detach().clone()
        state = id(tensor), tensor._version
        if state not in self._states:
            copy = tensor.detach().clone()
            self._states[state], self._originals[id(copy)] = (tensor, copy), (tensor, tensor._version)
        return self._states[state][1]

    def spared(self, copy: Tensor) -> Tensor:
        """The tensor itself where nobody has changed it since it was copied, so that the copy can go."""
        tensor, version = self._originals.get(id(copy), (copy, None))
        return tensor.detach() if version is not None and tensor._version == version else copy


def _multiplies(module: nn.Module) -> bool:
    """Whether a module is a layer that multiplies with weights, without modules inside."""
    matrices = any(parameter.ndim > 1 for parameter in module.parameters())
    return matrices and next(module.children(), None) is None


def _shape_of(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta")


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same structure of tuples, lists and dicts with a function applied to every tensor."""
    if isinstance(value, Tensor):
        return function(value)
    if type(value) is dict:
        return {key: _mapped(item, function) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_mapped(item, function) for item in value)
    return value
