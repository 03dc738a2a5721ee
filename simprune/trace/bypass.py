"""Taking a block out: its input is handed on, or, where the block's output is added to a stream, zeros are added."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from simprune.core.batches import first_tensor

Source = str | int | None  # where an output comes from: an argument by name or position; None: from no argument
# The source of the only output, or of every output of a block that returns a tuple; the first is the stream.
OutputLayout = Source | tuple[Source, ...]
INDICES = ("layer_idx", "layer_id")  # attributes by which modules of a layer know its number, as caches count
PLAIN = (bool, int, float, str, type(None))  # types of the attributes that a stand-in takes over from its block


class Bypass(nn.Module):
    """Returns the stream that a block worked on, or zeros of the stream's shape.

    Where the block returned a tuple, a Bypass returns one of the same length: it hands on the arguments that the block
    handed on, and its other outputs are None. A cache of keys and values that it gets grows by as many positions as if
    attention were there, because networks read the length of what they have seen from their caches.

    Args:
        layout: which arguments the outputs are (see `simprune.trace.visits.Visit.layout`); by default the first tensor
            is the only output.
        zero: whether zeros are returned instead of the stream.

    >>> import torch
    >>> Bypass()(torch.ones(2), mask=None)
    tensor([1., 1.])
    """

    def __init__(self, layout: OutputLayout = None, zero: bool = False) -> None:
        super().__init__()
        self.layout, self.zero = layout, zero
        self.layer_idx: int | None = None  # by which caches know the layer, where attention was removed

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        sources = self.layout if isinstance(self.layout, tuple) else (self.layout,)
        arguments = {**dict(enumerate(args)), **kwargs}
        x = arguments[sources[0]] if sources[0] in arguments else first_tensor(tuple(arguments.values()))
        assert x is not None
        to_encoder = getattr(self, "is_cross_attention", False) or arguments.get("key_value_states") is not None
        if self.layer_idx is not None and not to_encoder:
            _advance_caches(arguments, self.layer_idx, x)
        outputs = (self.stand_in(x), *(arguments.get(source) for source in sources[1:]))
        return outputs if isinstance(self.layout, tuple) else outputs[0]

    def stand_in(self, x: Tensor) -> Tensor:
        """What is returned for the stream `x`."""
        return x.new_zeros(x.shape) if self.zero else x

    def extra_repr(self) -> str:
        return "zero" if self.zero else ""


def _advance_caches(arguments: Mapping[Source, Any], index: int, x: Tensor) -> None:
    """Lengthen the entry of a layer in every cache of keys and values, as transformers has them, by those of `x`."""
    for argument in arguments.values():
        cache = getattr(argument, "self_attention_cache", argument)  # beside it, an encoder-decoder has another
        if x.ndim != 3 or not (hasattr(cache, "update") and hasattr(cache, "get_seq_length")):
            continue
        layers = getattr(cache, "layers", ())
        if index >= len(layers) or hasattr(layers[index], "keys"):  # others have states of one size
            filler = x.new_zeros(len(x), 1, x.shape[1], 1)
            cache.update(filler, filler, index)


def install(model: nn.Module, name: str, module: Bypass) -> None:
    """Put a stand-in where the module `name` was.

    It takes over the numbers, flags and texts that the module and its children carry, because networks read attributes
    of their layers.
    """
    old = model.get_submodule(name)
    # nn.TransformerEncoderLayer reads parameters of its layers: None says that they are gone
    attributes = dict.fromkeys(old._parameters) | vars(_plain(old))
    vars(module).update({key: value for key, value in attributes.items() if not hasattr(module, key)})
    indices = (value for part in old.modules() for name in INDICES if type(value := vars(part).get(name)) is int)
    module.layer_idx = next(indices, None)
    module.train(old.training)
    put(model, name, module)


def put(model: nn.Module, name: str, value: nn.Module | nn.Parameter) -> None:
    """Make `value` the submodule or parameter `name` of a model."""
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, value)


def _plain(module: nn.Module) -> SimpleNamespace:
    """The numbers, flags and texts of a module, and those of its children as attributes of that name."""
    own = {key: value for key, value in vars(module).items() if isinstance(value, PLAIN) and not key.startswith("_")}
    return SimpleNamespace(**own, **{name: _plain(child) for name, child in module.named_children()})


@contextmanager
def without(model: nn.Module, name: str, stand_in: Bypass) -> Iterator[None]:
    """Within the block, `stand_in` replaces the module `name`."""
    module = model.get_submodule(name)
    try:
        install(model, name, stand_in)
        yield
    finally:
        put(model, name, module)
