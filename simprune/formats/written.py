"""What a format leaves: the way to run its files, and what is to be said of them."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core.batches import all_tensors
from simprune.core.cost import Example
from simprune.trace.context import eval_mode, uncached


@dataclass(frozen=True)
class Written:
    """The files of a format, read back.

    Args:
        run: arguments by position and by name, as the model takes them, to the outputs of the files, in order.
        usage: lines of Python that open the files in the folder.
        notes: what a user of the files has to know.
    """

    run: Callable[[tuple, Mapping[str, Any]], list[Tensor]]
    usage: str
    notes: list[str] = field(default_factory=list)


class Plain(nn.Module):
    """A model from tensors to a tuple of tensors, which every format can express.

    Args:
        model: the model.
        example: its arguments; values that are no tensors stay as they are here.

    >>> layer, inputs = nn.Linear(2, 3), torch.ones(1, 2)
    >>> [output.shape for output in Plain(layer, ((), {"input": inputs}))(inputs)]
    [torch.Size([1, 3])]
    """

    def __init__(self, model: nn.Module, example: Example) -> None:
        super().__init__()
        self.model = model
        self.args, self.kwargs = example

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        left = iter(tensors)
        args = [next(left) if isinstance(value, Tensor) else value for value in self.args]
        kwargs = {key: next(left) if isinstance(value, Tensor) else value for key, value in self.kwargs.items()}
        return tuple(all_tensors(self.model(*args, **kwargs)).values())


def tensors_of(args: tuple, kwargs: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """The tensors among arguments, in the order in which `Plain` takes them."""
    return tuple(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))


@contextmanager
def ready(model: nn.Module) -> Iterator[None]:
    """Within the block a model computes its outputs alone: no dropout, no cache, no gradients."""
    with eval_mode(model), uncached(model), torch.no_grad():
        yield


def outputs(model: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The outputs of a model by name, in order."""
    with ready(model):
        return all_tensors(model(*args, **kwargs))


def argument_names(model: nn.Module, example: Example) -> list[str]:
    """Names of the tensors of an example, in order: by position as the model's `forward` calls them, then by name.

    >>> argument_names(nn.Linear(2, 2), ((torch.zeros(1, 2),), {}))
    ['input']

    Raises:
        ValueError: for tensors inside of lists and mappings.
    """
    args, kwargs = example
    plain = (bool, int, float, str, type(None), Tensor)
    if odd := next((value for value in (*args, *kwargs.values()) if not isinstance(value, plain)), None):
        raise ValueError(
            f"inputs: expected tensors, and plain values beside them; got a {type(odd).__name__}: wrap the model in "
            "one whose forward takes every tensor as an argument of its own"
        )
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [p.name for p in inspect.signature(model.forward).parameters.values() if p.kind in positional]
    names = [parameters[i] if i < len(parameters) else f"input_{i}" for i in range(len(args))]
    named = [*zip(names, args, strict=True), *kwargs.items()]
    return [name for name, value in named if isinstance(value, Tensor)]


def free_sizes(tensors: tuple[Tensor, ...]) -> dict[str, Any]:
    """The sizes of tensors that may differ from call to call, as torch.export takes them for `Plain`.

    The number of inputs may differ, and where tokens are inputs, their number in a sequence.
    """
    auto = torch.export.Dim.AUTO  # pyright: ignore[reportAttributeAccessIssue]

    def sizes(value: Tensor) -> dict[int, Any]:
        tokens = value.ndim == 2 and not value.is_floating_point()
        return dict.fromkeys(range(min(value.ndim, 2 if tokens else 1)), auto)

    return {"tensors": tuple(map(sizes, tensors))}
