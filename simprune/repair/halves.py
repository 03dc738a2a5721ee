"""Halves of residual blocks, such as attention and MLP, that add what their last layer gives to the stream.

Such a layer can be fitted to the stream itself: what is wanted behind it in the original, minus what arrives before it
in the pruned network. It then makes up for everything that the stream has lost so far, and a layer before a removed
block for what that block would have added.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from simprune.core.batches import copied, first_tensor
from simprune.core.copies import sharing
from simprune.core.cost import Example
from simprune.core.structures import NotPrunable
from simprune.structures._candidates import Branch, branches_of, equal
from simprune.trace.bypass import Bypass, install
from simprune.trace.context import eval_mode
from simprune.trace.layers import channel_dim
from simprune.trace.network import Network

SMALL = 1e-3  # of the mean size of a stream: positions do not count as smaller


@dataclass(frozen=True)
class Half:
    """A layer whose output, times a gain, is added to the stream.

    Args:
        block: name of the block.
        gain: (channels,) of the layer's output in the original.
        starts: the original's and the pruned network's block without this half and those behind it: they give the
            streams before the half.
        follows: the layer that ends the half right before this one; None where there is none, or where it is removed.
        is_last: whether no half that is left is behind it.
    """

    block: str
    gain: Tensor
    starts: tuple[nn.Module, nn.Module]
    follows: str | None
    is_last: bool

    def target(self, wanted: Tensor, stream: Tensor, remaining: Tensor) -> tuple[Tensor, Tensor]:
        """What the layer should give: the stream wanted behind it less what is there before; and the stream's size.

        Both are (N, positions, channels); of sizes, which are roots of mean squares, there is one per position. What
        reads the stream normalises it, so an error counts in relation to its size. In language models some tokens,
        such as the first, are a thousand times as large as others.

        Args:
            wanted: the original's stream.
            stream: that of the pruned network before the half.
            remaining: indices of the original's channels that the pruned network still has.
        """
        wanted = wanted[..., remaining]
        size = wanted.float().square().mean(-1, keepdim=True).sqrt()
        return (wanted - stream) / self.gain[remaining], size.clamp(min=SMALL * size.mean())


class Passage:
    """The streams of both networks on their way through a block, batch by batch, while its halves are fitted in order.

    Every half adds what its last layer gives, so no half runs a second time.

    Args:
        calls: arguments of the block in the original, and in the pruned network.
        outputs: what the last layers of halves that are not the last one give in the original.
        goals: the stream that is wanted behind the block.
    """

    def __init__(
        self,
        calls: Sequence[tuple[Example, Example]],
        outputs: Mapping[str, Sequence[Tensor]],
        goals: Sequence[Tensor],
    ) -> None:
        self.calls, self.outputs, self.goals = calls, outputs, goals
        self.behind = ""  # the layer whose half has run last
        self.wanted: Sequence[Tensor] = []  # the original's stream behind the half
        self.streams: list[Tensor] = []  # the pruned network's stream before it

    def reach(self, layer: str, half: Half) -> None:
        """The half that ends with a layer is fitted next."""
        known = half.follows is not None and half.follows == self.behind
        original, pruned = half.starts
        if not known:
            self.streams = [stream_of(pruned, call) for _, call in self.calls]
        if half.is_last:
            self.wanted = self.goals
        else:
            starts = self.wanted if known else [stream_of(original, call) for call, _ in self.calls]
            self.wanted = [
                start + half.gain.to(start) * output for start, output in zip(starts, self.outputs[layer], strict=True)
            ]

    def leave(self, name: str, half: Half, layer: nn.Module, inputs: Sequence[Tensor], remaining: Tensor) -> None:
        """The layer that ends a half, and gets these inputs, is fitted."""
        if not half.is_last:
            gain = half.gain[remaining]
            self.streams = [stream + gain.to(stream) * layer(x) for stream, x in zip(self.streams, inputs, strict=True)]
        self.behind = name


@dataclass(frozen=True)
class Halves:
    """All halves of a pruned network that layers can be fitted for.

    Args:
        layers: the last layer of every half -> the half.
        arrivals: block whose first halves are removed -> the original's block without all others: it gives the stream
            that is wanted where the first half that is left begins.
        successors: block -> what in the original gets the stream wanted behind it: the next block that is left, or,
            where the stream ends with removed blocks, what comes behind them.
        before_gaps: the last layers of what is left before something removed.
    """

    layers: Mapping[str, Half] = field(default_factory=dict)
    arrivals: Mapping[str, nn.Module] = field(default_factory=dict)
    successors: Mapping[str, str] = field(default_factory=dict)
    before_gaps: Set[str] = frozenset()


def find_halves(small: nn.Module, network: Network, layers: Sequence[str], dropped: Sequence[str]) -> Halves:
    """The halves of all blocks that are sums of their input and of what whole modules give.

    Args:
        small: the pruned network; what is removed from it is a `Bypass`.
        network: the original.
        layers: that may be fitted, in order of execution.
        dropped: names of the removed modules.
    """
    halves: dict[str, Half] = {}
    arrivals: dict[str, nn.Module] = {}
    ends: set[str] = set()  # blocks whose last half is removed
    inside: set[str] = set()
    blocks = network.block_calls
    for name in sorted(blocks.calls, key=lambda name: -name.count(".")):  # innermost first
        own = [layer for layer in layers if layer.startswith(f"{name}.")]
        if not own or any(other.startswith(f"{name}.") for other in inside) or blocks.silent(name) is None:
            continue
        inside.add(name)
        of_block, arrival, is_cut = _halves_of(small, network, name, own)
        halves |= of_block
        if arrival is not None:
            arrivals[name] = arrival
        if is_cut:
            ends.add(name)
    last = {half.block: layer for layer, half in halves.items()}
    # What a fitted map or constant stands in for is not made up for once more.
    plain = {name for name in dropped if type(small.get_submodule(name)) is Bypass}
    steps = [*_steps(network, plain, last.keys())]
    gaps = {last[block] for block, follower, gap in steps if gap or follower in arrivals}
    gaps |= {layer for block, layer in last.items() if block in ends}
    return Halves(halves, arrivals, {block: follower for block, follower, _ in steps}, gaps)


def _halves_of(
    small: nn.Module, network: Network, name: str, layers: Sequence[str]
) -> tuple[dict[str, Half], nn.Module | None, bool]:
    """The halves of one block, its arrival, and whether its last half is removed.

    There are none unless the place of every half's last layer in the sum is clear.
    """
    try:
        branches = branches_of(network.model, name, network.visits[name])
    except NotPrunable:
        return {}, None, False
    left = [n for n, branch in enumerate(branches) if not isinstance(small.get_submodule(branch.name), Bypass)]
    halves: dict[str, Half] = {}
    ends: dict[str, int] = {}  # the last layers of halves -> which branch of the block it is
    for number, following in zip(left, [*left[1:], None], strict=True):
        branch = branches[number]
        layer = next((layer for layer in reversed(layers) if layer.startswith(f"{branch.name}.")), None)
        gain = None if layer is None or branch.adds != branch.name else _gain(network, branch, layer, name)
        if layer is None or gain is None:
            return {}, None, False
        starts = tuple(_without(model, network, name, branches[number:]) for model in (network.model, small))
        follows = next((other for other, end in ends.items() if end == number - 1), None)
        halves[layer] = Half(name, gain, (starts[0], starts[1]), follows, following is None)
        ends[layer] = number
    arrival = _without(network.model, network, name, branches[left[0] :]) if left and left[0] > 0 else None
    return halves, arrival, bool(left) and left[-1] < len(branches) - 1


def _gain(network: Network, branch: Branch, layer: str, block: str) -> Tensor | None:
    """(channels,) by which a linear layer's output enters the stream, last in it; None where it does not just so."""
    stream, axis = network.visits[block].output, network.axes.of(block, "output")
    output = network.visits[layer].output
    last = stream is not None and axis in (-1, stream.ndim - 1) and output is not None and output.shape == stream.shape
    if not last or channel_dim(network.model.get_submodule(layer)) != -1:
        return None
    gain = network.block_calls.gain(branch.name, layer)
    return gain * branch.gain if gain is not None and bool((gain != 0).all()) else None


def _without(model: nn.Module, network: Network, name: str, branches: Sequence[Branch]) -> nn.Module:
    """A copy of a block, in the memory of its weights, in which some halves add nothing."""
    block = sharing(model.get_submodule(name))
    for branch in branches:
        layout = network.visits[branch.name].layout()
        install(block, branch.name.removeprefix(f"{name}."), Bypass(layout, zero=True))
    return block


def stream_of(block: nn.Module, call: Example) -> Tensor:
    """What a block gives; its arguments stay as they are."""
    args, kwargs = copied(call)
    with eval_mode(block), torch.no_grad():
        output = first_tensor(block(*args, **kwargs))
    assert output is not None
    return output


def _steps(network: Network, dropped: Set[str], blocks: Set[str]) -> Iterator[tuple[str, str, bool]]:
    """(block, what gets its stream, whether removed ones are between), where the stream runs from one to the other.

    What gets the stream is the next block that is left, or behind removed blocks whatever comes next.
    """
    removed = tuple(f"{name}." for name in dropped)
    open_block, stream, gap = "", None, False  # the last block that is left, and the original's stream behind it
    for name, visit in network.visits.items():
        value, follows = visit.input, False
        if stream is not None and value is not None and value.device == stream.device and not name.startswith(removed):
            follows = equal(value, stream)
        if follows and (name in blocks or (gap and name not in dropped)):
            yield open_block, name, gap
            stream = None
        if name in blocks:
            open_block, stream, gap = name, visit.output, False
        elif follows and name in dropped:
            stream, gap = visit.output, True
