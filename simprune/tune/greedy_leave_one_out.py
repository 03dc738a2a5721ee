"""Greedy leave-one-out with repair: remove the block that is missed least once the layers behind it are refitted.

A score of the intact network alone is wrong about the second block that is removed. Here blocks are removed one at a
time, and the remaining blocks are tried again in the network without the removed ones.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core.batches import call, checked, inputs_of, mask_of
from simprune.core.progress import progress
from simprune.core.registry import register
from simprune.core.structures import Block
from simprune.edit.effects import Effects
from simprune.repair.refit import Repair
from simprune.scores.blocks._context import BlockContext
from simprune.trace.bypass import Bypass, OutputLayout, install, without
from simprune.trace.context import evaluation, uncached
from simprune.trace.hooks import hooks
from simprune.trace.network import Network
from simprune.trace.shortcuts import find_shortcuts
from simprune.trace.sites import Site

RIDGE = 1e-3
INERT = 1e-9  # relative squared error of the output; below it nothing is refitted


@register("block_score", "greedy_leave_one_out", source="Minoux 1978, lazy greedy")
def greedy_leave_one_out(
    context: BlockContext, *, images: int = 128, repair: bool = True, steps: int | None = None
) -> dict[str, float]:
    """Redundancy 1 / (1 + e): e is the error of the output once the block and all that went before it are gone.

    e: squared error over variance of the network's output, on inputs that nothing was fitted to. `images`: inputs to
    fit to, and as many to measure on, from the two halves of every batch. `repair`: a trial refits, in closed form, as
    many layers behind the block as the block has, and when a block goes all layers behind it; False refits nothing.
    `steps`: how many removals to play through (None: all); blocks that are left have the error of their last trial.

    A block is tried again only when what its removal added last time could still be the least (lazy greedy, Minoux
    1978): exact where a block's loss only grows as others go. Cost of a trial: a closed-form fit of as many layers as
    the block has, and a forward pass from the block on; of a removal, a fit of all layers behind it. Memory: the stream
    around every block on 3 x `images` inputs.
    """
    for name, value in (("images", images), ("steps", steps)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"greedy_leave_one_out: {name} must be a whole number from 1; got {value!r}")
    game = _Game(
        context.network, list(checked(context.calibration, "calibration")), context.stream.blocks, images, repair
    )
    errors: dict[str, float] = {}
    added = dict.fromkeys(game.left, 0.0)  # what each block's removal added to the error when it was last tried
    last: dict[str, float] = {}
    now = 0.0
    for _ in progress(range(len(game.left) if steps is None else min(steps, len(game.left))), "greedy leave one out"):
        if not game.left:
            break  # blocks inside removed blocks were removed with them
        game.look()
        tried: set[str] = set()
        while (name := min(game.left, key=lambda block: (added[block], block not in tried))) not in tried:
            last[name] = game.trial(name)
            added[name] = last[name] - now
            tried.add(name)
        reached = max([last[name], *errors.values()])  # so that errors never fall in the order of removal
        gone, now = game.remove(name)
        errors |= dict.fromkeys(gone, reached * (1 + 1e-9))
    worst = max(errors.values())
    left = {name: max(last[name], worst) for name in game.left}
    return {block.name: 1 / (1 + (errors | left)[block.name]) for block in context.stream.blocks}


class _Game:
    """The original, the network without the blocks removed so far, and what runs through both on the chosen inputs.

    `left`: the remaining blocks by name. `fitted`, `held`: batches to fit to, and to measure on.
    """

    def __init__(self, network: Network, batches: list, blocks: Sequence[Block], images: int, repair: bool) -> None:
        model = network.model
        self.model, self.small, self.repair = model, copy.deepcopy(model), repair
        self.left = {block.name: block for block in blocks}
        self.layouts: dict[str, OutputLayout] = {name: network.visits[name].layout() for name in self.left}
        self.fitted, self.held = _halves(batches, images)
        self.order, self.normalisers = network.order, network.normalisers
        self.shortcuts = find_shortcuts(model, network.block_calls, self.order) if repair else {}
        with evaluation(model), uncached(model):
            self.wanted = [_outputs(model, batch) for batch in self.held]
        rows = torch.cat(self.wanted)
        self.variance = float((rows - rows.mean(0)).square().sum().clamp(min=1e-30))
        pair = [_cut(batches[0], 0, 2, _length(batches[0]))]
        self.outputs = _record(model, pair, self.layouts, "output")
        self.skippable = {name: self._earlier(name) for name in self.left}
        self.skippable = {name: earlier for name, earlier in self.skippable.items() if self._proven(name, pair[0])}
        self.outputs = _record(model, self.fitted, self.layouts, "output")

    def look(self) -> None:
        """Record the inputs that the remaining blocks get in the network as it is now."""
        self.fed = [
            _record(self.small, batches, self.layouts, "input", self.left) for batches in (self.fitted, self.held)
        ]

    def trial(self, name: str) -> float:
        """The error of the output without one of the remaining blocks; the network is unchanged afterwards."""
        behind = self._behind(name)[: sum(layer.startswith(f"{name}.") for layer in self.order)]
        error, before = self._repaired(name, behind)
        self.small.load_state_dict(before, strict=False)
        return error

    def remove(self, name: str) -> tuple[list[str], float]:
        """Remove a block for good and refit all layers behind it; returns the removed blocks and the error."""
        error, _ = self._repaired(name, self._behind(name))
        install(self.small, name, Bypass(self.layouts[name], self.left[name].replace == "zero"))
        gone = [other for other in self.left if other == name or other.startswith(f"{name}.")]
        for other in gone:
            del self.left[other]
        return gone, error

    def _repaired(self, name: str, layers: Sequence[str]) -> tuple[float, dict[str, Tensor]]:
        """The error without a block, `layers` refitted where that helps; and the state of the layers before."""
        before = self._state(layers)
        with self._without(name, self.fed[1]):
            plain = self._error()
        if not self.repair or plain < INERT:
            return plain, before
        with self._without(name, self.fed[0]):
            self._refit(name, layers)
        with self._without(name, self.fed[1]):
            refitted = self._error()
        if refitted > plain:  # too few inputs to fit to
            self.small.load_state_dict(before, strict=False)
        return min(plain, refitted), before

    def _refit(self, name: str, layers: Sequence[str]) -> None:
        """Least squares for the original's output, layer after layer."""
        shortcuts = {layer: self.shortcuts[layer] for layer in layers if layer in self.shortcuts}
        repair = Repair(self.small, self.model, Effects({}, (), {}), self.normalisers, shortcuts, RIDGE)
        with self._skipping(self.model, name, Replay(self.layouts[name], self.outputs[name])):
            repair.run(layers, self.fitted)

    def _error(self) -> float:
        with evaluation(self.small), uncached(self.small):
            lost = [
                (_outputs(self.small, batch) - wanted).square().sum()
                for batch, wanted in zip(self.held, self.wanted, strict=True)
            ]
        return float(sum(lost)) / self.variance

    def _behind(self, name: str) -> list[str]:
        """The layers that run after a block and have not been removed."""
        own = [index for index, layer in enumerate(self.order) if layer.startswith(f"{name}.")]
        living = {layer for layer, _ in self.small.named_modules()}
        return [layer for layer in self.order[max(own, default=len(self.order)) + 1 :] if layer in living]

    def _state(self, layers: Iterable[str]) -> dict[str, Tensor]:
        """Copies of what a refit of these layers writes to."""
        owners = {*layers, *(self.normalisers[layer] for layer in layers if layer in self.normalisers)}
        state = self.small.state_dict()
        return {key: value.clone() for key, value in state.items() if key.rpartition(".")[0] in owners}

    # ---- blocks before the tried block need not run, because its inputs were recorded ----

    @contextmanager
    def _without(self, name: str, inputs: Mapping[str, list[Tensor]]) -> Iterator[None]:
        if self.left[name].replace == "zero":
            with without(self.small, name, Bypass(self.layouts[name], zero=True)):
                yield
        else:
            with self._skipping(self.small, name, Replay(self.layouts[name], inputs[name])):
                yield

    @contextmanager
    def _skipping(self, network: nn.Module, name: str, replay: "Replay") -> Iterator[None]:
        with ExitStack() as stack:
            for other in self.skippable.get(name, []):
                if isinstance(network.get_submodule(other), Bypass):
                    continue  # removed before
                stack.enter_context(without(network, other, Bypass(self.layouts[other])))
            stack.enter_context(without(network, name, replay))
            yield

    def _earlier(self, name: str) -> list[str]:
        """The outermost blocks before a block that an identity can replace."""
        before = [*self.layouts][: [*self.layouts].index(name)]
        whole = [other for other in before if self.left[other].replace == "identity"]
        return [other for other in whole if not any(other.startswith(f"{outer}.") for outer in whole)]

    def _proven(self, name: str, batch: Any) -> bool:
        """Whether only this block needs what the blocks before it return; false where connections skip it."""
        with evaluation(self.model), uncached(self.model):
            expected = call(self.model, batch)
            with self._skipping(self.model, name, Replay(self.layouts[name], self.outputs[name])):
                return torch.equal(call(self.model, batch), expected)


class Replay(Bypass):
    """Returns what was recorded for the first, second, ... batch, in turn, whatever its input is."""

    def __init__(self, layout: OutputLayout, recorded: Sequence[Tensor]) -> None:
        super().__init__(layout)
        self.recorded = cycle(recorded)

    def stand_in(self, x: Tensor) -> Tensor:
        return next(self.recorded).clone()


def _outputs(network: nn.Module, batch: Any) -> Tensor:
    """(rows, width) of the network's output, padding left out."""
    return Site("the output", "positions", mask=mask_of(batch)).rows(call(network, batch)).double()


def _record(
    network: nn.Module,
    batches: list,
    layouts: Mapping[str, OutputLayout],
    side: str,
    names: Iterable[str] | None = None,
) -> dict[str, list[Tensor]]:
    """The inputs or outputs (`side`) of blocks, by name, batch by batch."""
    recorded: dict[str, list[Tensor]] = {name: [] for name in (layouts if names is None else names)}
    watched = []
    for name, values in recorded.items():
        layout = layouts[name]
        key = layout[0] if isinstance(layout, tuple) else layout

        def see(_: nn.Module, args: tuple, kwargs: dict, output: Any = None, values: list = values, key: Any = key):
            first = output[0] if isinstance(output, tuple | list) else output
            values.append(({**dict(enumerate(args)), **kwargs}[key] if side == "input" else first).clone())

        watched.append((network.get_submodule(name), see))
    before, after = (watched, []) if side == "input" else ([], watched)
    with evaluation(network), uncached(network), hooks(before, after):
        for batch in batches:
            call(network, batch)
    return recorded


def _halves(batches: list, images: int) -> tuple[list, list]:
    """The first half of every batch, and the second, until there are `images` inputs of each."""
    first, second, count = [], [], 0
    for batch in batches:
        size = min(_length(batch) // 2, images - count)
        if size < 1:
            continue
        first.append(_cut(batch, 0, size, _length(batch)))
        second.append(_cut(batch, size, 2 * size, _length(batch)))
        count += size
    if not first:
        raise ValueError("greedy_leave_one_out: batches must have two inputs or more")
    return first, second


def _length(batch: Any) -> int:
    args, kwargs = inputs_of(batch)
    return next(len(value) for value in [*args, *kwargs.values()] if isinstance(value, Tensor) and value.ndim)


def _cut(value: Any, start: int, stop: int, length: int) -> Any:
    if isinstance(value, Tensor):
        return value[start:stop] if value.ndim and len(value) == length else value
    if isinstance(value, Mapping):
        return {key: _cut(item, start, stop, length) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(_cut(item, start, stop, length) for item in value)
    return value
