"""Greedy leave-one-out with repair: remove the block that is missed least once the layers behind it are refitted.

A score of the intact network alone is wrong about the second block that is removed. Here blocks are removed one after
another, and the remaining blocks are tried again in the network without the removed ones.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simprune.core.batches import call_all, checked, inputs_of, output_mask_of, rows_at
from simprune.core.copies import copy_of
from simprune.core.cost import Example
from simprune.core.divergence import divergences_from
from simprune.core.example import rows_of
from simprune.core.progress import progress
from simprune.core.registry import register
from simprune.core.spread import Spread
from simprune.core.ties import TIE
from simprune.edit.effects import Effects
from simprune.repair.in_order import refit_in_order
from simprune.repair.refit import Repair
from simprune.repair.ridge import Ridge
from simprune.scores.blocks._context import BlockContext
from simprune.trace.bypass import Bypass, OutputLayout, install, without
from simprune.trace.context import evaluation, uncached
from simprune.trace.outputs import as_rows, rows_of_outputs, shares_of
from simprune.trace.shortcuts import find_shortcuts
from simprune.tune.before_gap import Writer, fit_writer, runs_of, writers_of
from simprune.tune.recorded import Replay, arguments_of, record, source_of

Error = Literal["squares", "divergence"]
RIDGE = 1e-3
INERT = 1e-9  # relative squared error of the output; below it nothing is refitted


@register("block_score", "greedy_leave_one_out", source="Minoux 1978, lazy greedy")
def greedy_leave_one_out(
    context: BlockContext,
    *,
    images: int = 128,
    repair: bool = True,
    steps: int | None = None,
    error: Error = "squares",
    measured: int | None = None,
) -> dict[str, float]:
    """Redundancy 1 / (1 + e): e is the error of the output without the block and all blocks removed before it.

    e, on inputs that nothing was fitted to: squared error over variance of the network's output; with
    `error: divergence`, which suits language models, how far the probabilities of the classes or tokens have moved
    (Kullback-Leibler, in nats per row). `images`: inputs to fit to, and as many to measure on, by turns; `measured`: to
    measure on fewer. `repair`: a trial refits, in closed form, the layer that writes the stream before the block; in
    networks without such layers as many layers behind the block as the block has, and a removal all layers behind it.
    False refits nothing. `steps`: how many blocks to remove (None: all); the remaining blocks have the error of their
    last trial, or where that is less the error with all that were removed. The whole repair makes up for one gap better
    than for several, which no trial here foresees: `planner.finalists` tries runs of blocks beside this choice.

    A block is tried again only when the error that its removal added in its last trial could still be the least (lazy
    greedy, Minoux 1978): exact where a block's loss only grows as other blocks are removed. A trial costs a closed-form
    fit of as many layers as the block has, and a forward pass from the block on; a removal costs a fit of all layers
    behind the block, or where the layer before it is refitted no more than its trial. Memory: the stream around every
    block on 3 x `images` inputs.
    """
    for name, value in (("images", images), ("steps", steps), ("measured", measured)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"greedy_leave_one_out: {name} must be a whole number from 1; got {value!r}")
    shrinking = _ShrinkingNetwork(context, images, images if measured is None else measured, repair, error)
    remaining, errors = shrinking.remaining, dict[str, float]()
    added = dict.fromkeys(remaining, 0.0)  # by block: the error that its removal added in its last trial
    last: dict[str, float] = {}
    now = 0.0
    for _ in progress(range(min(steps or len(remaining), len(remaining))), "greedy leave one out"):
        if not remaining:
            break  # blocks inside removed blocks were removed with them
        tried: set[str] = set()
        while (name := min(remaining, key=lambda block: (added[block], block not in tried))) not in tried:
            last[name] = shrinking.error_without(name)
            added[name] = last[name] - now
            tried.add(name)
        reached = max([last[name], *(_more(error) for error in errors.values())])  # errors rise in the order of removal
        removed, now = shrinking.remove(name)
        errors |= dict.fromkeys(removed, reached)
    worst = max(errors.values())  # those whose last trial was long ago follow it in the order of what they added
    for name in sorted(remaining, key=added.__getitem__):
        worst = _more(worst)
        errors[name] = max(last[name], worst)
    return {block.name: 1 / (1 + errors[block.name]) for block in context.stream.blocks}


def _more(error: float) -> float:
    """A little more than an error, by as much as planners tell from it: they see e / (1 + e), and rounding as equal."""
    return error * (1 + 10 * TIE * (1 + error))


@dataclass(frozen=True)
class Trial:
    """A block that was taken out, the error without it, and the parameters that were refitted for that."""

    name: str = ""
    error: float = float("inf")
    state: Mapping[str, Tensor] = field(default_factory=dict)


class _ShrinkingNetwork:
    """The original and the network without the blocks removed so far, with the streams of both on the chosen inputs.

    `remaining`: blocks by name. `fitted`, `held`: batches to fit to, and to measure on. `skippable`: by block, the
    blocks before it that need not run where its input is known.
    """

    def __init__(self, context: BlockContext, images: int, measured: int, repair: bool, error: Error) -> None:
        network, batches = context.network, list(checked(context.calibration, "calibration"))
        model = network.model
        self.model, self.small, self.repair, self.error = model, copy_of(model), repair, error
        self.remaining = {block.name: block for block in context.stream.blocks}
        self.layouts: dict[str, OutputLayout] = {name: network.visits[name].layout() for name in self.remaining}
        self.fitted, self.held = _halves(batches, images, measured)
        self.order, self.normalisers = network.order, network.normalisers
        self.shared = network.execution.elsewhere  # refitting these would change what other layers compute
        self.shortcuts = find_shortcuts(model, network.block_calls, self.order) if repair else {}
        self.writers = writers_of(network) if repair else {}
        self.chains = [[block.name for block in chain.blocks] for chain in context.stream.chains]
        self.rows, spreads = rows_of_outputs(model, batches[0]), {name: Spread() for name in network.outputs}
        count = rows_of(inputs_of(batches[0]))
        pair = rows_at(batches[0], torch.arange(min(2, count)), count)
        self.outputs = record(model, [pair], self.layouts, outputs=True).outputs
        self.skippable = {name: self._earlier(name) for name in self.remaining}
        with evaluation(model), uncached(model):
            whole = call_all(model, pair)
        self.skippable = {name: earlier for name, earlier in self.skippable.items() if self._proven(name, pair, whole)}
        fitted = record(model, self.fitted if repair else [], self.layouts, outputs=True)
        held = record(model, self.held, self.layouts, at_end=partial(self._outputs, model))
        self.outputs, self.wanted = fitted.outputs, held.ends
        for outputs in self.wanted:
            for name, rows in outputs.items():
                spreads[name].update(rows)
        self.shares = shares_of(spreads, network.weights)
        self.counts = {name: sum(len(outputs[name]) for outputs in self.wanted) for name in self.shares}
        if error == "divergence":
            self.wanted = [{name: F.log_softmax(rows.float(), -1) for name, rows in ends.items()} for ends in held.ends]
        self.calls = [fitted.calls, held.calls]  # of the blocks, on `fitted` and on `held`
        self.outdated: set[str] = set()  # blocks whose calls are no longer those of the network as it is now
        self.gaps: dict[str, list[list[Tensor]]] = {}  # removed blocks -> the streams there in the network as it is now
        self.best = Trial()  # of the network as it is now

    def inputs(self, name: str) -> list[list[Tensor]]:
        """The stream before a block, batch by batch, on the inputs to fit to and on those to measure on."""
        source = source_of(self.layouts[name])
        return [[arguments_of(call)[source] for call in calls] for calls in self.calls_of(name)]

    def calls_of(self, name: str) -> list[list[Example]]:
        """The calls of a remaining block in the network as it is now, on the same inputs.

        Few blocks are tried again after a removal, so outdated calls are recorded again when they are asked for, from
        the last gap before the block on.
        """
        if name in self.outdated:
            gap = max((gap for gap in self.gaps if name in self._behind_gap(gap)), key=self._place, default="")
            streams = self.gaps[gap] if gap else [[], []]
            for calls, batches, stream in zip(self.calls, self._batches(), streams, strict=True):
                with self._skipping(self.small, gap, Replay(self.layouts[gap], stream)) if gap else nullcontext():
                    calls |= record(self.small, batches, {name: self.layouts[name]}).calls
            self.outdated.remove(name)
        return [calls[name] for calls in self.calls]

    def _place(self, name: str) -> int:
        """The number of a block in order of execution."""
        return [*self.layouts].index(name)

    def _behind_gap(self, gap: str) -> list[str]:
        """The remaining blocks whose inputs a removal there changes; all of them where that is not known."""
        skipped = tuple(f"{other}." for other in self.skippable.get(gap, []))
        around = {other for other in self.remaining if gap.startswith(f"{other}.")}
        return [other for other in self.remaining if not f"{other}.".startswith(skipped) and other not in around]

    def _batches(self) -> tuple[list, list]:
        return self.fitted if self.repair else [], self.held

    def error_without(self, name: str) -> float:
        """The error of the output without one of the remaining blocks; the network is unchanged afterwards."""
        behind = self._behind(name)[: sum(layer.startswith(f"{name}.") for layer in self.order)]
        error, before = self._rewritten(name) if self.writers else self._repaired(name, behind)
        if error < self.best.error and (self.writers or not self.repair):  # a removal would do the same
            state = self.small.state_dict()
            self.best = Trial(name, error, {key: state[key].clone() for key in before})
        self.small.load_state_dict(before, strict=False)
        return error

    def remove(self, name: str) -> tuple[list[str], float]:
        """Remove a block for good and refit all layers behind it; returns the removed blocks and the error."""
        streams = self.inputs(name)
        error = self.best.error
        if self.best.name == name:
            self.small.load_state_dict(self.best.state, strict=False)
        else:
            error, _ = self._rewritten(name) if self.writers else self._repaired(name, self._behind(name))
        zero, writer, changed = self.remaining[name].replace == "zero", self._writer(name), name
        if writer is not None:
            changed, _ = self._ends(name)
            streams = [
                [output for *_, output in runs_of(self.small, changed, writer.layer, calls)]
                for calls in self.calls_of(changed)
            ]
        install(self.small, name, Bypass(self.layouts[name], zero))
        removed = [other for other in self.remaining if other == name or other.startswith(f"{name}.")]
        for other in removed:
            del self.remaining[other]
        self.outdated = (self.outdated | {*self._behind_gap("" if zero else name)}) & self.remaining.keys()
        before = self.skippable.get(changed, [])
        self.gaps = {gap: known for gap, known in self.gaps.items() if gap in before and not zero}
        self.gaps |= {} if zero else {name: streams}
        self.best = Trial()
        return removed, error

    def _repaired(self, name: str, layers: Sequence[str]) -> tuple[float, dict[str, Tensor]]:
        """The error without a block, `layers` refitted where that helps; and the state of the layers before."""
        owners = {*layers, *(self.normalisers[layer] for layer in layers if layer in self.normalisers)}
        state = self.small.state_dict()
        before = {key: value.clone() for key, value in state.items() if key.rpartition(".")[0] in owners}
        to_fit, to_measure = self.inputs(name)
        with self._without(name, to_measure):
            plain = self._error()
        if not self.repair or plain < INERT:
            return plain, before
        shortcuts = {layer: self.shortcuts[layer] for layer in layers if layer in self.shortcuts}
        with self._without(name, to_fit):
            repair = Repair(self.small, self.model, Effects({}, (), {}), self.normalisers, shortcuts, RIDGE)
            with self._skipping(self.model, name, Replay(self.layouts[name], self.outputs[name])):
                refit_in_order(repair, layers, self.fitted)
        with self._without(name, to_measure):
            refitted = self._error()
        if refitted > plain:  # too few inputs to fit to
            self.small.load_state_dict(before, strict=False)
        return min(plain, refitted), before

    def _rewritten(self, name: str) -> tuple[float, Mapping[str, Tensor]]:
        """The error without a block, the writer before the gap refitted; and the writer's parameters before."""
        writer = self._writer(name)
        if writer is None:
            with self._without(name, self.inputs(name)[1]):
                return self._error(), {}
        before, last = self._ends(name)
        ridge: Ridge = 1.0 if self.error == "divergence" else "auto"  # 1: see `simprune.repair.leading`
        to_fit, to_measure = self.calls_of(before)
        state = fit_writer(self.small, self.model, before, writer, to_fit, self.outputs[last], self.fitted, ridge)
        stream = [output for *_, output in runs_of(self.small, before, writer.layer, to_measure)]
        with self._skipping(self.small, name, Replay(self.layouts[name], stream)):
            return self._error(), state

    def _writer(self, name: str) -> Writer | None:
        """The writer of the block before the gap that a block leaves; None where nothing is refitted there."""
        writer = self.writers.get(self._ends(name)[0])
        living = {layer for layer, _ in self.small.named_modules()}  # the writer goes with its half of a block
        none = writer is None or writer.layer not in living or self.remaining[name].replace == "zero"
        return None if none else writer

    def _ends(self, name: str) -> tuple[str, str]:
        """The block that is left before the gap that a block leaves, if any, and the last one that is gone in it."""
        chain = next(chain for chain in self.chains if name in chain)
        at = chain.index(name)
        before = next((block for block in reversed(chain[:at]) if block in self.remaining), "")
        last = at + next((n for n, block in enumerate(chain[at + 1 :]) if block in self.remaining), len(chain) - at - 1)
        return before, chain[last]

    def _outputs(self, network: nn.Module, batch: Any) -> dict[str, Tensor]:
        """(rows, width) of all outputs of a network, by name, without padding."""
        return as_rows(call_all(network, batch), self.rows, output_mask_of(batch))

    def _error(self) -> float:
        with evaluation(self.small), uncached(self.small):
            lost = 0.0
            for batch, wanted in zip(self.held, self.wanted, strict=True):
                outputs = self._outputs(self.small, batch)
                for name, share in self.shares.items():
                    if self.error == "divergence":
                        lost += float(divergences_from(wanted[name], outputs[name]).sum()) / self.counts[name]
                    else:
                        lost += share * float((outputs[name].double() - wanted[name].double()).square().sum())
        return lost

    def _behind(self, name: str) -> list[str]:
        """The layers that run after a block and have not been removed."""
        own = [index for index, layer in enumerate(self.order) if layer.startswith(f"{name}.")]
        living = {layer for layer, _ in self.small.named_modules()} - self.shared.keys()
        return [layer for layer in self.order[max(own, default=len(self.order)) + 1 :] if layer in living]

    # ---- blocks before the tried block need not run, because its inputs were recorded ----

    def _without(self, name: str, stream: Sequence[Tensor]) -> AbstractContextManager[None]:
        if self.remaining[name].replace == "zero":
            return without(self.small, name, Bypass(self.layouts[name], zero=True))
        return self._skipping(self.small, name, Replay(self.layouts[name], stream))

    @contextmanager
    def _skipping(self, network: nn.Module, name: str, replay: Replay) -> Iterator[None]:
        with ExitStack() as stack:
            for other in self.skippable.get(name, []):
                if not isinstance(network.get_submodule(other), Bypass):  # otherwise it was removed before
                    stack.enter_context(without(network, other, Bypass(self.layouts[other])))
            stack.enter_context(without(network, name, replay))
            yield

    def _earlier(self, name: str) -> list[str]:
        """The outermost blocks before a block that an identity can replace."""
        before = [*self.layouts][: [*self.layouts].index(name)]
        outside = [other for other in before if not name.startswith(f"{other}.")]
        whole = [other for other in outside if self.remaining[other].replace == "identity"]
        return [other for other in whole if not any(other.startswith(f"{outer}.") for outer in whole)]

    def _proven(self, name: str, batch: Any, whole: Mapping[str, Tensor]) -> bool:
        """Whether only this block needs what the blocks before it return; false where connections skip it.

        Args:
            name: of the block.
            batch: of which `outputs` are.
            whole: what the network returns for the batch, by name.
        """
        replay = Replay(self.layouts[name], self.outputs[name])
        with evaluation(self.model), uncached(self.model), self._skipping(self.model, name, replay):
            return all(torch.equal(value, whole[key]) for key, value in call_all(self.model, batch).items())


def _halves(batches: list, images: int, measured: int) -> tuple[list, list]:
    """The inputs with even and those with odd numbers, so many of each at most: batch sizes change neither."""
    even: list[Any] = []
    odd: list[Any] = []
    number = 0
    for batch in batches:
        numbers = torch.arange(number, number + rows_of(inputs_of(batch)))
        number += len(numbers)
        for half, parity, most in ((even, 0, images), (odd, 1, measured)):
            rows = (numbers % 2 == parity) & (numbers < 2 * most)
            if rows.any():
                half.append(rows_at(batch, rows))
    if not odd:
        raise ValueError("greedy_leave_one_out: calibration must have two inputs or more")
    return even, odd
