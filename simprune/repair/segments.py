"""Segments: consecutive layers that are fitted together to what the original gives at their end.

A residual block is one, and so is any module that runs once and gives one tensor: a mixed block, a linear bottleneck, a
pair of convolutions, a small network as a whole. Of a chain, which is an nn.Sequential, every few layers are one.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core.batches import copied, first_tensor
from simprune.core.cost import Example
from simprune.edit.effects import Effects
from simprune.trace.context import eval_mode
from simprune.trace.hooks import hooks
from simprune.trace.network import Network

LARGEST = 8  # layers of a module that is fitted as a whole
DIFFERENT = 0.5  # share of the variance: outputs that differ by more are not of the same channels
RUN = 3  # layers of a chain that are fitted together


@dataclass(frozen=True)
class Segment:
    """A module, or a run of children of a chain, whose layers are fitted together.

    `name`: of the module ("" is the model itself), or of the first and the last child. `entry`: the module whose
    arguments are those of the segment. `layers`: in order of execution. `axis`: along which the channels of its output
    lie. `children`: of the chain `chain`; none for a module.
    """

    name: str
    entry: str
    layers: tuple[str, ...]
    axis: int | None = None
    chain: str = ""
    children: tuple[str, ...] = ()

    @property
    def end(self) -> str:
        """The module whose output is that of the segment."""
        return f"{self.prefix}{self.children[-1]}" if self.children else self.name

    @property
    def prefix(self) -> str:
        """What the names of modules in the segment begin with."""
        around = self.chain if self.children else self.name
        return f"{around}." if around else ""

    def holds(self, layer: str) -> bool:
        """Whether a layer lies in it."""
        return layer in self.layers or (not self.children and layer.startswith(self.prefix))

    @property
    def names(self) -> tuple[str, ...]:
        """What a recipe chooses a method for: the module, or the layers of a chain."""
        return self.layers if self.children else (self.name,)

    def of(self, net: nn.Module) -> nn.Module:
        """The segment of a network; its modules are the network's own."""
        if not self.children:
            return net.get_submodule(self.name)
        around = net.get_submodule(self.chain)
        return nn.Sequential(OrderedDict((child, around.get_submodule(child)) for child in self.children))


def run_through(segment: nn.Module, layers: Iterable[str], call: Example) -> tuple[Tensor, int]:
    """What a segment gives, and the number of entries of the largest output of its layers."""
    sizes: list[int] = []

    def see(_: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
        sizes.append(output.numel())

    args, kwargs = copied(call)
    with eval_mode(segment), hooks(after=[(segment.get_submodule(name), see) for name in layers]):
        output = first_tensor(segment(*args, **kwargs))
    assert output is not None
    return output, max(sizes, default=0)


def outputs_left(last: Tensor, of: int, effects: Effects, original: Tensor, pruned: Tensor, axis: int) -> Tensor | None:
    """Which channels of what a segment gives are left in the pruned network; None where that is not known.

    They are those that its last layer still has; or, where the segment joins several outputs, those that a layer behind
    it still reads: of all tensors that lost as many entries, the one by which the outputs agree.

    Args:
        last: outputs that the last layer of the segment still has.
        of: how many it has in the original.
        effects: of the plan.
        original: what the segment gives in the original.
        pruned: what it gives in the pruned network.
        axis: along which the channels lie.
    """
    width, left = original.shape[axis], pruned.shape[axis]
    if left == width:
        return torch.arange(width, device=pruned.device)
    if (len(last), of) == (left, width):
        return last
    sets = {removed for removed in effects.removed.values() if len(removed) == width - left and max(removed) < width}
    best, nearest = None, DIFFERENT
    for removed in sets:
        index = torch.tensor([entry for entry in range(width) if entry not in {*removed}], device=pruned.device)
        target = original.index_select(axis, index)
        error = float((pruned - target).square().sum() / (target - target.mean()).square().sum().clamp(min=1e-30))
        if error < nearest:
            best, nearest = index, error
    return best


def find_segments(network: Network, layers: Sequence[str], taken: Set[str]) -> list[Segment]:
    """The segments of a network beside its residual blocks.

    Args:
        network: the original.
        layers: that may be changed, in order of execution; they run once.
        taken: names of the residual blocks, which are left out.

    Returns:
        Segments of at least two layers, none inside another. Layers that only a module of more than `LARGEST` layers
        holds, which is no chain, are in no segment.
    """
    return [*_Finder(network, layers, taken).within("")]


@dataclass(frozen=True)
class _Finder:
    network: Network
    layers: Sequence[str]
    taken: Set[str]

    def within(self, name: str) -> Iterator[Segment]:
        """The segments of a module: itself, or those of its parts."""
        inside = self._layers(name)
        if len(inside) < 2 or name in self.taken:
            return
        if len(inside) <= LARGEST and not self._around_taken(name) and self._one_tensor(name):
            yield Segment(name, name, inside, self.network.axes.of(name, "output"))
            return
        module = self.network.model.get_submodule(name)
        parts = [f"{name}.{child}" if name else child for child, _ in module.named_children()]
        if type(module).forward is nn.Sequential.forward and (not name or name in self.network.block_calls.calls):
            yield from self._runs(name, parts)
        for part in parts:
            if part in self.taken or len(self._layers(part)) > 1:
                yield from self.within(part)

    def _runs(self, name: str, parts: Sequence[str]) -> Iterator[Segment]:
        """Runs of children of a chain, each from a child with a layer to before the next run, or a larger child."""
        runs: list[list[str]] = [[]]
        for part in parts:
            held = self._layers(part)
            if part in self.taken or len(held) > 1:
                runs.append([])
                continue
            if held and sum(len(self._layers(other)) for other in runs[-1]) >= RUN:
                runs.append([])
            if held or runs[-1]:
                runs[-1].append(part)
        for run in runs:
            inside = tuple(layer for part in run for layer in self._layers(part))
            if len(inside) > 1:
                children = tuple(part.rpartition(".")[2] for part in run)
                axis = self.network.axes.of(run[-1], "output")
                yield Segment(f"{run[0]} to {run[-1]}", run[0], inside, axis, name, children)

    def _layers(self, name: str) -> tuple[str, ...]:
        return tuple(layer for layer in self.layers if not name or f"{layer}.".startswith(f"{name}."))

    def _around_taken(self, name: str) -> bool:
        return any(not name or other.startswith(f"{name}.") for other in self.taken)

    def _one_tensor(self, name: str) -> bool:
        """Whether a module runs once and gives one tensor and nothing else."""
        network: Any = self.network
        if name and name not in network.block_calls.calls:
            return False
        args, kwargs = copied(network.block_calls.calls[name] if name else network.example)
        module = network.model.get_submodule(name)
        with eval_mode(module), torch.no_grad():
            return isinstance(module(*args, **kwargs), Tensor)
