"""Second-order cost: how far does the network's output change when a channel is removed and its readers are refitted?

This is the optimal brain surgeon (Hassibi and Stork, 1993) for structures. When the inputs u of a layer y = W x are
removed and the other weights are refitted by least squares, the error W_u [(C^-1)_uu]^-1 W_u^T remains, where C is the
covariance of the layer's inputs (for a convolution, of its patches). `simprune.trace.sensitivity` says what an error at
y does to the output. It counts errors at different positions as independent, which suffices for the order within a
group, but underestimates the damage of a group. Where rows are fewer than inputs, the other inputs also interpolate
whatever is removed, so that the fit's own error says nothing. Therefore `simprune.scores.output_changes` measures the
damage at several levels of the removal, on inputs that are held out of everything that is fitted here.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core import processes
from simprune.core.batches import inputs_of, mask_at
from simprune.core.example import rows_of
from simprune.core.heap import give_back
from simprune.core.holdout import Counting
from simprune.core.moments import gram
from simprune.core.registry import register
from simprune.core.spaced import enough, spaced
from simprune.core.structures import Slice, UnitGroup
from simprune.core.ties import first_least
from simprune.scores.channels._elimination import Elimination
from simprune.scores.channels._inputs import Gathered
from simprune.scores.channels._memory import require_memory
from simprune.scores.channels._moments import correlation_of
from simprune.scores.channels._score import ChannelScore, levels, nearest, reading_weights
from simprune.scores.output_changes import OutputLoss, Weights
from simprune.trace.layers import (
    Convolution,
    can_be_fitted,
    in_full,
    matrix_of,
    patches,
    positions,
    some_patches,
    stacked,
    taps,
)
from simprune.trace.network import Network
from simprune.trace.sensitivity import Watcher, backpropagate

RIDGE = 1e-3  # of the mean input variance, for the order of removal
RIDGES = (10.0, 1.0, 1e-1, 1e-2, 1e-3)  # that are tried for the refit after it, as in the repair
HELD_ROWS = 16  # rows of an input that is held out that the choice among `RIDGES` looks at
GRADIENTS = 256  # positions of a map at which gradients are read at least
NOTHING = 1e-7  # cost of a removal, as a share of a channel's mean cost alone, that rounding may make or not
RANK = 1e-12  # eigenvalues below this share of the largest are rounding errors and left out


@register(
    "score",
    "second_order",
    source="Hassibi and Stork 1993, for structures",
    why="the others, readers refitted, make up for {least:.1%} or more (mean {mean:.1%}) of each",
    output_losses=True,
    nearest=True,
    beside=True,
    products=True,
)
def second_order(
    network: Network,
    calibration: Iterable,
    groups: Sequence[UnitGroup],
    beside: Sequence[Watcher] = (),
    *,
    seed: int = 0,
) -> dict[str, ChannelScore]:
    """Damage: expected squared change of the output without a channel, as a share of the output's variance.

    Channels are removed greedily, and the readers are refitted after every removal. One forward and one backward pass
    over the batches. With width = inputs x kernel of a reader, and one row per sample and position, memory is O(width x
    min(width, rows)), and time is channels times as much. Groups that only grouped convolutions read cannot be
    refitted, and are left out.
    """
    model = network.model
    weights = {
        group: [part for part in reading_weights(group) if can_be_fitted(model.get_submodule(part.module))]
        for group in groups
    }
    owner = _owners(weights)
    sums = {part.module: _Sums(model.get_submodule(part.module)) for parts in weights.values() for part in parts}
    if not sums:  # as where grouped convolutions alone read the groups
        return {}
    require_memory({name: each.layer for name, each in sums.items() if owner[name] == processes.rank()})
    readers = _Readers(sums, owner, network)
    walk = backpropagate(model, calibration, [readers, *beside], seed, network.weights)
    del readers
    give_back()
    scores: dict[str, ChannelScore] = {}
    last = {part.module: group.name for group, parts in weights.items() for part in parts}
    for group, parts in weights.items():
        if parts and owner[parts[0].module] == processes.rank():
            # No name holds what is read while the next group is read.
            scores[group.name] = _eliminate(
                group.size, [_Surgeon(part, sums[part.module], walk.variance) for part in parts]
            )
        for part in parts:
            if last[part.module] == group.name:  # what was read is as large as a layer, or larger
                sums.pop(part.module, None)
        give_back()
    known = {name: score for some in processes.gather(scores) for name, score in some.items()}
    return {group.name: known[group.name] for group in weights if group.name in known}


def _owners(weights: Mapping[UnitGroup, Sequence[Slice]]) -> dict[str, int]:
    """The number of the process that looks after a layer; layers that read one group have the same."""
    owner: dict[str, int] = {}
    number = 0
    for parts in weights.values():
        names = {part.module for part in parts}
        known = {owner[name] for name in names if name in owner}
        chosen = min(known, default=number % processes.count())
        number += not known
        owner |= dict.fromkeys([*names, *(other for other, its in owner.items() if its in known)], chosen)
    return owner


@dataclass
class _Sums:
    """Sums over the calibration set for one layer: its inputs, and the gradients at its output.

    Args:
        layer: the layer.
        inputs: those that are not held out.
        held: some rows of those that are.
        gradients: products of gradients at the outputs; where the layer has more outputs than inputs, such as the head
            of a language model, of these gradients times the weight, (inputs, inputs).
        samples: number of inputs.
    """

    layer: nn.Module
    inputs: Gathered = field(default_factory=Gathered)
    held: list[Tensor] = field(default_factory=list)
    gradients: Tensor | None = None
    samples: int = 0

    def add_inputs(self, patches: Tensor) -> None:
        """Add (samples, inputs, positions) that are not held out."""
        self.inputs.add(patches)

    def add_held(self, rows: Tensor) -> None:
        """Add (n, inputs) rows that are."""
        self.held.append(rows)

    def add_gradients(self, product: Tensor, share: float, samples: int) -> None:
        """Add the products of gradients of so many inputs, seen at one in `share` positions."""
        product = product.double() * share
        self.gradients = product if self.gradients is None else self.gradients + product
        self.samples += samples


class _Readers(Watcher):
    """Reads what layers get and the gradients at their outputs, for the processes that look after the layers."""

    def __init__(self, sums: "Mapping[str, _Sums]", owner: Mapping[str, int], network: Network) -> None:
        self._counting = Counting()
        self._mail = processes.Mail(lambda key, what, *content: getattr(sums[key], what)(*content), owner.__getitem__)
        self._of = {
            name: _Reader(each.layer, self._counting, partial(self._mail.send, name), network.axes.batch(name, "input"))
            for name, each in sums.items()
        }
        super().__init__({name: reader.watch for name, reader in self._of.items()})

    def begin(self, batch: Any) -> None:
        self._counting.begin(rows_of(inputs_of(batch)))
        for name, reader in self._of.items():
            reader.mask = mask_at(batch, name)

    def close(self) -> None:
        self._mail.deliver()


@dataclass
class _Reader:
    """Reads what a layer gets in a batch, and the gradients at its output.

    Args:
        layer: the layer.
        counting: of the calibration inputs.
        send: takes the name of a method of `_Sums`, and what it takes.
        axis: along which the inputs of a batch lie in what the layer gets.
        mask: of the batch that is running, true for tokens and false for padding.
    """

    layer: nn.Module
    counting: Counting
    send: Callable[..., None]
    axis: int = 0
    mask: Tensor | None = None

    def watch(self, layer: nn.Module, value: Tensor, output: Tensor) -> None:
        x, y = value.movedim(self.axis, 0), output.detach().movedim(self.axis, 0)
        held = self.counting.held_out(len(x)).to(x.device)
        if not held.all():
            most = enough(matrix_of(self.layer).shape[1])
            self.send("add_inputs", self._patches(x, y, ~held if held.any() else slice(None), most))
        if held.any():
            rows = stacked(self._patches(x, y, held, HELD_ROWS)).T
            self.send("add_held", rows[:: max(1, len(rows) // (HELD_ROWS * int(held.sum())))])
        output.register_hook(partial(self._add, len(output)))

    def _patches(self, value: Tensor, output: Tensor, part: Tensor | slice, most: int) -> Tensor:
        """Patches of a part of a batch, without padding; of a large map at `most` positions."""
        mask = self.mask
        if mask is not None and value.ndim == 3 and mask.shape == value.shape[:2]:
            tokens = mask.to(value.device)[part]
            return patches(self.layer, value[part][tokens], output[part][tokens])
        return some_patches(self.layer, value[part], output[part], most)

    def _add(self, samples: int, gradient: Tensor) -> None:
        gradient, share = positions(self.layer, gradient), 1.0
        at = (
            spaced(gradient.shape[2], max(GRADIENTS, len(matrix_of(self.layer))))
            if isinstance(self.layer, Convolution)
            else None
        )
        if at is not None:
            gradient, share = gradient[..., at.to(gradient.device)], gradient.shape[2] / len(at)
        columns = stacked(in_full(gradient))
        if at_inputs(self.layer):
            columns = in_full(matrix_of(self.layer)).T @ columns
        self.send("add_gradients", gram(columns), share, samples)


def at_inputs(layer: nn.Module) -> bool:
    """Whether products of gradients are taken times the weight: where there are more outputs than inputs."""
    outputs, inputs = matrix_of(layer).shape
    return outputs > inputs


def _eliminate(size: int, readers: "Sequence[_Surgeon]") -> ChannelScore:
    """Greedy removal of the channel of least cost, summed over readers; redundancy is relative to `alone`."""
    order: list[int] = []
    damage = torch.zeros(size, dtype=torch.float64)
    alone = torch.stack([reader.alone() for reader in readers]).sum(0)
    similarity = torch.stack([reader.correlations() for reader in readers]).mean(0)
    floor = NOTHING * float(alone.mean())
    eliminations = [_elimination(together) for together in _alike(readers)]
    for _ in range(size - 1):
        costs = torch.stack([elimination.costs() for elimination in eliminations]).sum(0)
        channel = first_least(costs.numpy(), floor)
        damage[channel] = costs[channel].clamp(min=0)
        order.append(channel)
        for elimination in eliminations:
            elimination.remove(channel)
    del eliminations
    remaining = sorted({*range(size)} - {*order})
    damage[remaining] = alone[remaining]
    lost = torch.where(alone > 0, damage / alone.clamp(min=1e-300), 0).clamp(0, 1)
    score = ChannelScore.of([*order, *remaining], 1 - lost, damage)
    of_readers = [list(reader.losses(score.order, levels(size))) for reader in readers]  # one factor at a time
    losses = zip(*of_readers, strict=True)
    return replace(score, losses=dict(zip(levels(size), losses, strict=True)), nearest=nearest(similarity))


def _alike(readers: "Sequence[_Surgeon]") -> "list[list[_Surgeon]]":
    """Readers that get the same inputs, together."""
    sets: list[list[_Surgeon]] = []
    for reader in readers:
        same = next((together for together in sets if together[0].reads_what(reader)), None)
        if same is None:
            sets.append([reader])
        else:
            same.append(reader)
    return sets


def _elimination(readers: "Sequence[_Surgeon]") -> Elimination:
    """The removal of channels one after another from layers with the same inputs, as from one layer of all outputs."""
    columns, inputs = readers[0].columns, readers[0].inputs
    weights = torch.cat([reader.weight.index_select(1, columns.flatten()) for reader in readers])
    return Elimination(inputs.inverse(columns.flatten(), RIDGE), weights, len(columns))


class _Surgeon:
    """One reader of a group: its weights, and what is lost without some of its inputs."""

    def __init__(self, part: Slice, reader: _Sums, variance: float) -> None:
        self.name, self.layer = part.module, reader.layer
        kernel = taps(self.layer)
        self.columns = (torch.tensor(part.indices)[:, :, None] * kernel + torch.arange(kernel)).flatten(1)
        self.inputs = reader.inputs.inputs()
        # The metric G weighs errors of the output. tr(G W ... W^T) = |F W ...|^2 with F^T F = G, so F is multiplied
        # into the weights once and squared norms suffice from there on. At the inputs, G is W^T G W, and F is F W.
        weight = matrix_of(self.layer).double().cpu()
        metric = weight.new_zeros(min(weight.shape), min(weight.shape))  # where nothing reads what the layer gives
        if reader.gradients is not None:
            metric = reader.gradients.cpu() / (reader.samples * variance)
        values, vectors = torch.linalg.eigh(metric)
        seen = values > RANK * values[-1].clamp(min=0)
        root = (vectors[:, seen] * values[seen].sqrt()).T
        self.weight = root if at_inputs(self.layer) else root @ weight
        self.held = torch.cat(reader.held).double().cpu() - self.inputs.mean if reader.held else None

    def alone(self) -> Tensor:
        """(channels,) error without a channel when nothing is refitted."""
        weights = self.weight.T[self.columns]  # (channels, k, outputs)
        return (weights * (self.inputs.blocks(self.columns) @ weights)).sum((1, 2))

    def correlations(self) -> Tensor:
        """(channels, channels) absolute correlations; the entries of a channel count as samples of one number."""
        return correlation_of(self.inputs.covariances(self.columns)).abs()

    def reads_what(self, other: "_Surgeon") -> bool:
        """Whether the other layer gets the same inputs, such as the layers of queries and of keys."""
        return torch.equal(self.columns, other.columns) and self.inputs.equal(other.inputs)

    def losses(self, order: Sequence[int], counts: Sequence[int]) -> Iterator[OutputLoss]:
        """The losses at the layer's output when the first channels of an order go, the other weights refitted.

        Such a loss is what another linear layer gives. Its ridge is the one with which a refit without half of the
        channels predicts held-out inputs best.

        Args:
            order: all channels, from the first to be removed to the last.
            counts: numbers of channels that go, each for itself.
        """
        late, k = self.columns[[*reversed(order)]].flatten(), self.columns.shape[1]  # what goes first comes last
        others = torch.ones(self.weight.shape[1], dtype=torch.bool)  # inputs of no channel, which stay
        others[late] = False
        sequence = torch.cat([others.nonzero().flatten(), late])
        back, self.inputs = sequence.argsort(), self.inputs.sequence(sequence)
        ridge = self._best_ridge(sequence, len(sequence) - (len(order) + 1) // 2 * k)
        weight, mean = matrix_of(self.layer).double().cpu().index_select(1, sequence), self.inputs.mean[back]
        sizes = [len(sequence) - count * k for count in counts]
        refits = self.inputs.refits(weight, sizes, ridge) if ridge < float("inf") and max(sizes) > 0 else None
        for size in sizes:
            lost = weight.clone()
            lost[:, :size] -= weight[:, :size] if refits is None else next(refits)
            weights = Weights.of(lost, mean, self.layer.get_parameter("weight"), back)
            yield OutputLoss(self.name, weights=weights, fitted=True)

    def _best_ridge(self, sequence: Tensor, size: int) -> float:
        """The ridge with which the first inputs of a sequence make up best for the others where inputs are held out."""
        if self.held is None:
            return RIDGE
        held, seen = self.held.index_select(1, sequence), self.weight.index_select(1, sequence)
        wanted = held[:, size:] @ seen[:, size:].T
        replacing = self.inputs.replacing(seen, size, held)
        best, least = float("inf"), float(wanted.square().sum())
        for ridge in RIDGES if size else ():
            error = float((wanted - replacing(ridge)).square().sum())
            if error >= least:
                break
            best, least = ridge, error
        return best
