"""The calls of blocks in passes over batches, recorded once, so that later passes can begin at any block."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any

from torch import Tensor, nn

from simprune.core.batches import call
from simprune.core.cost import Example
from simprune.trace.bypass import Bypass, OutputLayout
from simprune.trace.context import evaluation, uncached
from simprune.trace.hooks import hooks


@dataclass(frozen=True)
class Recorded:
    """The calls of blocks, their outputs and what the network gave at its end, batch by batch."""

    calls: dict[str, list[Example]]
    outputs: dict[str, list[Tensor]]
    ends: list[dict[str, Tensor]]


def record(
    network: nn.Module,
    batches: list,
    layouts: Mapping[str, OutputLayout],
    outputs: bool = False,
    at_end: Callable[[Any], dict[str, Tensor]] | None = None,
) -> Recorded:
    """The calls of the blocks that have a layout, in one pass over the batches.

    Args:
        network: with these blocks.
        batches: of the network.
        layouts: of the blocks, by name.
        outputs: whether their outputs are recorded as well.
        at_end: runs the network on a batch and returns what is recorded of its end; None: it runs no further than to
            the last of the blocks.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3))
    >>> recorded = record(model, [torch.zeros(4, 2)], {"1": 0}, outputs=True)
    >>> [args[0].shape for args, _ in recorded.calls["1"]], [output.shape for output in recorded.outputs["1"]]
    ([torch.Size([4, 3])], [torch.Size([4, 3])])
    """
    recorded = Recorded({name: [] for name in layouts}, {name: [] for name in layouts if outputs}, [])
    waiting: set[str] = set()

    def reached(name: str) -> None:
        waiting.discard(name)
        if not waiting and at_end is None:
            raise _AllRecorded

    def before(name: str, _: nn.Module, args: tuple, kwargs: dict) -> None:
        source = source_of(layouts[name])
        stream = {source: arguments_of((args, kwargs))[source].clone()}  # modules may work in place
        args = tuple(stream.get(number, value) for number, value in enumerate(args))
        recorded.calls[name].append((args, {key: stream.get(key, value) for key, value in kwargs.items()}))
        if not outputs:
            reached(name)

    def after(name: str, _: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        recorded.outputs[name].append((output[0] if isinstance(output, tuple | list) else output).clone())
        reached(name)

    befores, afters = (
        [(network.get_submodule(name), partial(see, name)) for name in layouts] for see in (before, after)
    )
    with evaluation(network), uncached(network), hooks(befores, afters if outputs else []):
        for batch in batches:
            waiting |= layouts.keys()
            if at_end is not None:
                recorded.ends.append(at_end(batch))
                continue
            with suppress(_AllRecorded):
                call(network, batch)
    return recorded


class Replay(Bypass):
    """Returns the tensors recorded for the first, second, ... batch in turn, whatever its input is."""

    def __init__(self, layout: OutputLayout, recorded: Sequence[Tensor]) -> None:
        super().__init__(layout)
        self.recorded = cycle(recorded)

    def stand_in(self, x: Tensor) -> Tensor:
        return next(self.recorded).clone()


def source_of(layout: OutputLayout) -> int | str | None:
    """Which argument of a block is the stream."""
    return layout[0] if isinstance(layout, tuple) else layout


def arguments_of(call: Example) -> dict[int | str | None, Any]:
    args, kwargs = call
    return {**dict(enumerate(args)), **kwargs}


class _AllRecorded(Exception):
    """Ends a forward pass once every block has run; what comes behind them, such as scores of tokens, costs much."""
