"""Coupled channel groups: output channels of one layer with everything that has to go with them."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from simprune.batches import eval_mode, first_tensor
from simprune.cost import Example, cost_model, measure_cost
from simprune.surgery.coupling import CouplingGraph, NotPrunable, Slice

# Statistics across channels change when one goes, so "masked equals removed" cannot hold behind these.
ACROSS_CHANNELS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that exist once in the network's arithmetic, named after the first layer that produces them."""

    name: str
    size: int
    slices: tuple[Slice, ...]
    kind: str = "channels"

    @property
    def producers(self) -> tuple[str, ...]:
        """Modules whose outputs carry these channels."""
        return tuple(dict.fromkeys(part.module for part in self.slices if part.side == "out"))

    @property
    def consumers(self) -> tuple[str, ...]:
        """Modules that read these channels and forget them."""
        return tuple(dict.fromkeys(part.module for part in self.slices if part.side == "in"))

    def cut(self, channels: Sequence[int]) -> dict[tuple[str, int], int]:
        """How many entries every tensor loses along each dimension when these channels go."""
        return {
            (part.tensor, part.dim): sum(len(part.indices[channel]) for channel in channels) for part in self.slices
        }


def find_channel_groups(model: nn.Module, example: Example) -> tuple[list[ChannelGroup], list[tuple[str, str]]]:
    """All channel groups that can be removed safely, and the layers that cannot, with the reason.

    Every group is proven on a copy: one channel is removed, the network runs, its output keeps its shape, and where
    no normalisation mixes channels it equals the output of the network whose readers ignore that channel.
    """
    graph = CouplingGraph(model, example)
    groups: list[ChannelGroup] = []
    refused: list[tuple[str, str]] = []
    covered: set[str] = set()
    for layer in graph.roots():
        if layer in covered:
            continue
        try:
            group = ChannelGroup(layer, graph.width(layer), graph.slices(layer))
            if group.size < 2:
                raise NotPrunable("it has a single channel")
            if not group.consumers:
                raise NotPrunable("its output is the network's output")
        except NotPrunable as reason:
            refused.append((layer, str(reason)))
            continue
        covered.update(group.producers)
        groups.append(group)
    proven: list[ChannelGroup] = []
    for mixed in (False, True):
        some = [group for group in groups if _mixes_channels(model, group) == mixed]
        _prove(model, example, some, mixed, proven.append, refused)
    order = {group.name: place for place, group in enumerate(groups)}
    return sorted(proven, key=lambda group: order[group.name]), refused


def _mixes_channels(model: nn.Module, group: ChannelGroup) -> bool:
    return any(isinstance(model.get_submodule(name), ACROSS_CHANNELS) for name in group.producers)


def _prove(
    model: nn.Module,
    example: Example,
    groups: list[ChannelGroup],
    mixed: bool,
    accept: Callable[[ChannelGroup], None],
    refused: list[tuple[str, str]],
) -> None:
    """Try all groups at once; when that fails, halve until the culprits are found."""
    if not groups:
        return
    reason = _failure(model, example, groups, mixed)
    if reason is None:
        for group in groups:
            accept(group)
    elif len(groups) == 1:
        refused.append((groups[0].name, reason))
    else:
        middle = len(groups) // 2
        _prove(model, example, groups[:middle], mixed, accept, refused)
        _prove(model, example, groups[middle:], mixed, accept, refused)


def _failure(model: nn.Module, example: Example, groups: list[ChannelGroup], mixed: bool) -> str | None:
    """Why removing the middle channel of each group breaks the network, or None."""
    cut, masked = copy.deepcopy(model), copy.deepcopy(model)
    args, kwargs = example
    try:
        graph = CouplingGraph(cut, example)
        for group in groups:
            graph.prune(group.name, [group.size // 2])
            _ignore(masked, group, group.size // 2)
        with eval_mode(model, cut, masked), torch.no_grad():
            before, after, expected = (first_tensor(net(*args, **kwargs)) for net in (model, cut, masked))
    except NotPrunable as reason:
        return str(reason)
    except Exception as error:  # any failure of a foreign forward pass means the same: not safe to remove
        return f"the network fails without one of its channels ({_first_line(error)})"
    if before is None or after is None or before.shape != after.shape:
        return "its output is the network's output"
    if not mixed and expected is not None and not _close(after, expected):
        return "removing a channel differs from ignoring it, so the traced coupling is wrong"
    lost: dict[tuple[str, int], int] = {}
    for group in groups:
        for key, count in group.cut([group.size // 2]).items():
            lost[key] = lost.get(key, 0) + count
    if cost_model(model, example).after(lost) != measure_cost(cut, example):
        return "what the network costs without one of its channels cannot be predicted"
    return None


def _ignore(model: nn.Module, group: ChannelGroup, channel: int) -> None:
    """Zero what every reader multiplies this channel with."""
    for part in group.slices:
        if part.side == "in" and part.tensor.endswith("weight"):
            index = torch.tensor(part.indices[channel], device=model.get_parameter(part.tensor).device)
            model.get_parameter(part.tensor).data.index_fill_(part.dim, index, 0.0)


def _close(a: Tensor, b: Tensor) -> bool:
    scale = float(b.abs().max()) + 1e-6
    return bool((a - b).abs().max() <= 1e-3 * scale)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
