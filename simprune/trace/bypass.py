"""Take a block out: its input goes on in its place, or, for a branch that is added to a stream, nothing is added."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from simprune.core.batches import first_tensor

Source = str | int | None  # where an output comes from: an argument by name or position, or nothing
Layout = Source | tuple[Source, ...]  # a tuple for a block that returns one; first comes the stream that it works on
PLAIN = (bool, int, float, str, type(None))


class Bypass(nn.Module):
    """Returns the stream it gets (its first tensor unless `layout` says which), or zeros of its shape with `zero`.

    Where the block returned a tuple, so does this: arguments that the block handed through are handed through, and
    its other outputs are None. Plain attributes of the block stay readable, because networks ask their layers.

    >>> import torch
    >>> Bypass()(torch.ones(2), mask=None)
    tensor([1., 1.])
    """

    def __init__(self, layout: Layout = None, zero: bool = False) -> None:
        super().__init__()
        self.layout, self.zero = layout, zero

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        sources = self.layout if isinstance(self.layout, tuple) else (self.layout,)
        given = {**dict(enumerate(args)), **kwargs}
        x = given[sources[0]] if sources[0] in given else first_tensor(tuple(given.values()))
        assert x is not None
        outputs = (self.stand_in(x), *(given.get(source) for source in sources[1:]))
        return outputs if isinstance(self.layout, tuple) else outputs[0]

    def stand_in(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape) if self.zero else x

    def extra_repr(self) -> str:
        return "zero" if self.zero else ""


def layout_of(args: tuple, kwargs: Mapping[str, Any], output: Any) -> Layout:
    """How a block's outputs follow from its arguments: the stream is the first argument shaped like the main output.

    ValueError for outputs that are neither a tensor nor a tuple that begins with one, and where no argument fits.

    >>> import torch
    >>> x, bias = torch.ones(2), torch.ones(3)
    >>> layout_of((x,), {"bias": bias}, (x + 1, bias, None))
    (0, 'bias', None)
    """
    outputs = tuple(output) if isinstance(output, tuple | list) else (output,)
    if not outputs or not isinstance(outputs[0], Tensor):
        raise ValueError(f"it returns a {type(output).__name__} and not a tensor, or a tuple that begins with one")
    given = {**dict(enumerate(args)), **kwargs}
    tensors = {key: value for key, value in given.items() if isinstance(value, Tensor)}
    stream = next((key for key, value in tensors.items() if value.shape == outputs[0].shape), None)
    if stream is None:
        raise ValueError("it gets no tensor of its output's shape")
    if not isinstance(output, tuple | list):
        return stream
    known = {id(value): key for key, value in given.items() if value is not None}
    return (stream, *(known.get(id(value)) for value in outputs[1:]))


def install(model: nn.Module, name: str, module: Bypass) -> None:
    """Put a stand-in where the module `name` was; it answers for the plain attributes of that module."""
    old = model.get_submodule(name)
    for key, value in vars(_plain(old)).items():
        if key not in vars(module) and not hasattr(module, key):
            module.__dict__[key] = value
    for key in old._parameters:  # who asks for one of them, as nn.TransformerEncoderLayer does, learns that it is gone
        if not hasattr(module, key):
            module.__dict__[key] = None
    module.train(old.training)
    put(model, name, module)


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Make `module` the submodule `name`."""
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)


def _plain(module: nn.Module) -> SimpleNamespace:
    """Numbers, flags and texts that a module carries, its children's below it; no tensors."""
    own = {key: value for key, value in vars(module).items() if isinstance(value, PLAIN) and not key.startswith("_")}
    return SimpleNamespace(**own, **{name: _plain(child) for name, child in module.named_children()})


@contextmanager
def without(model: nn.Module, name: str, stand_in: Bypass) -> Iterator[None]:
    """For a while `stand_in` is in the place of a module."""
    module = model.get_submodule(name)
    try:
        install(model, name, stand_in)
        yield
    finally:
        put(model, name, module)
