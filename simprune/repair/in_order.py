"""Refitting layers in order of execution, so that every layer is fitted to inputs from layers that are refitted."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core import processes
from simprune.core.batches import copied, device_of, inputs_of, mask_at, move
from simprune.core.cost import Example
from simprune.core.example import rows_of
from simprune.core.heap import give_back
from simprune.core.progress import progress
from simprune.repair.calls import Batch, Calls, tensor_of
from simprune.repair.halves import Passage, stream_of
from simprune.repair.layer_fit import fit_layer, fit_repeated
from simprune.repair.leading import Leading
from simprune.repair.lockstep import Advance, lockstep
from simprune.repair.refit import Refit, Repair
from simprune.repair.segment_fit import fit_segment
from simprune.repair.segments import Segment
from simprune.repair.stops import Stops, Unit, stops_of, stretches_of, units_of
from simprune.trace.context import uncached


def refit_in_order(repair: Repair, layers: Sequence[str], batches: Sequence[Any], title: str = "") -> list[Refit]:
    """Refit layers one after another, to inputs from layers that are refitted.

    Several processes share out the batches, unless segments or layers that run more than once are fitted.

    Args:
        repair: what refitting needs to know.
        layers: names, in order of execution; those that run more than once where they run last.
        batches: calibration inputs.
        title: of the progress that is shown; none without it.

    Returns:
        The errors before and after: of every layer, and of every block in `repair.together` behind its layers.
    """
    known, first = list[Batch](), 0
    for batch in batches:
        known.append(Batch(first, rows_of(inputs_of(batch)), partial(mask_at, batch)))
        first += known[-1].inputs
    leading = None if repair.leading is None else Leading(repair.leading.leaders)  # nothing is fitted so far
    repair = replace(repair, inputs=first, leading=leading)
    if 1 < processes.count() <= len(batches) and not repair.together and not repair.repeats:
        turn = slice(processes.rank(), None, processes.count())
        return _refitted(replace(repair, shared=True), layers, batches[turn], known[turn], title)
    return _refitted(repair, layers, batches, known, title)


def _refitted(
    repair: Repair, layers: Sequence[str], batches: Sequence[Any], known: Sequence[Batch], title: str
) -> list[Refit]:
    """`refit_in_order`, on the batches of this process."""
    originals, inputs = (
        [move(inputs_of(batch), device_of(net)) for batch in batches] for net in (repair.model, repair.small)
    )
    refits: list[Refit] = []
    with uncached(repair.model), uncached(repair.small), torch.no_grad():  # blocks run more than once
        for stretch in stretches_of(layers, repair):
            if stretch[0] in repair.repeats:
                refits.append(fit_repeated(repair, stretch[0], originals, inputs, known))
                continue
            units = units_of(stretch, repair)
            stops = stops_of(units, repair)
            with (
                lockstep(repair.model, originals, stops.original, stops.behind) as original,
                lockstep(repair.small, inputs, stops.pruned) as pruned,
            ):
                walk = _Walk(repair, known, {unit.entry for unit in units}, stops, original, pruned)
                for unit in progress(units, title) if title else units:
                    give_back()
                    refits += walk.fit(unit)
    return refits


@dataclass
class _Walk:
    """The passes of both networks over all batches, from unit to unit.

    No activation is held from one stop to the next but what a fit behind it needs, because there is one per batch.

    Args:
        repair: what refitting needs to know.
        batches: what is known of every batch.
        entries: of all units.
        stops: of the passes.
        original: advances the original's passes.
        pruned: advances those of the pruned network.
        reached: what the original's passes wait at, where that is the next entry already.
    """

    repair: Repair
    batches: Sequence[Batch]
    entries: set[str]
    stops: Stops
    original: Advance
    pruned: Advance
    reached: list[Example] | None = None

    def fit(self, unit: Unit) -> list[Refit]:
        """Refit the layers of the next unit."""
        repair, entry = self.repair, unit.entry
        originals, self.reached = self.reached or self.original(entry), None
        calls = list(zip(originals, self.pruned(entry), self.batches, strict=True))
        del originals
        if unit.segment is None:
            return [fit_layer(repair, entry, calls, behind=entry in self.stops.behind)]
        if not unit.is_stepped or any(layer in repair.halves.layers for layer in unit.layers):
            calls = [(copied(theirs), copied(own), batch) for theirs, own, batch in calls]
            return self._fit_with_calls(unit, unit.segment, calls)
        lost = {layer: [*self._lost(layer, calls)] for layer in unit.layers if layer in repair.shortcuts}
        calls.clear()
        return [self._fit_layer(layer, self.original, self.pruned, lost.get(layer)) for layer in unit.layers]

    def _fit_with_calls(self, unit: Unit, segment: Segment, calls: Sequence[Calls]) -> list[Refit]:
        """Refit the layers of a unit by passes through it alone or by the streams in it, and at last as a whole."""
        repair, halves, (originals, inputs, _) = self.repair, self.repair.halves.layers, zip(*calls, strict=True)
        by_layer = [layer for layer in unit.layers if layer not in halves]
        behind = [layer for layer in by_layer if repair.narrows(layer)]
        passage = None if len(by_layer) == len(unit.layers) else self._passage(unit, calls)
        # With halves the original's passes are behind the segment by now.
        theirs = _through(segment, repair.model, originals if by_layer else (), by_layer, behind)
        own = nullcontext(self.pruned) if unit.is_stepped else _through(segment, repair.small, inputs, unit.layers)
        refits = []
        with theirs as original, own as pruned:
            for layer in unit.layers:
                if layer in halves and passage is not None:
                    refits.append(self._fit_half(layer, passage, pruned))
                    continue
                lost = self._lost(layer, calls) if layer in repair.shortcuts else None
                refits.append(self._fit_layer(layer, original, pruned, lost))
        goals = None if passage is None else passage.goals
        return [*refits, *fit_segment(repair, segment, calls, goals)] if segment in repair.together else refits

    def _fit_layer(self, layer: str, original: Advance, pruned: Advance, lost: Iterable[Tensor] | None) -> Refit:
        """Advance to a layer and refit it."""
        calls = list(zip(original(layer), pruned(layer), self.batches, strict=True))
        return fit_layer(self.repair, layer, calls, lost, behind=self.repair.narrows(layer))

    def _lost(self, layer: str, calls: Sequence[Calls]) -> Iterator[Tensor]:
        """What the shortcut around a layer's block has lost, by calls of the block."""
        remaining = self.repair.remaining(layer)
        return (self.repair.shortcuts[layer].drift(theirs, own, remaining) for theirs, own, _ in calls)

    def _fit_half(self, layer: str, passage: Passage, pruned: Advance) -> Refit:
        """Advance to the last layer of a half and refit it to the stream."""
        reached, half = pruned(layer), self.repair.halves.layers[layer]
        passage.reach(layer, half)
        calls = list(zip(reached, reached, self.batches, strict=True))  # the stream says what a half should give
        refit = fit_layer(self.repair, layer, calls, passage=passage)
        values = [tensor_of(call) for call in reached]
        passage.leave(layer, half, self.repair.small.get_submodule(layer), values, self.repair.remaining(layer))
        return refit

    def _passage(self, unit: Unit, calls: Sequence[Calls]) -> Passage:
        """The streams on their way through a block; the original advances to what follows it."""
        halves, block = self.repair.halves, self.repair.model.get_submodule(unit.entry)
        ends = [layer for layer in unit.layers if layer in halves.layers and not halves.layers[layer].is_last]
        outputs = {layer: [tensor_of(call).clone() for call in self.original(layer)] for layer in ends}
        follower = halves.successors.get(unit.entry)
        if follower is None:
            return Passage([call[:2] for call in calls], outputs, [stream_of(block, call) for call, *_ in calls])
        reached, arrival = self.original(follower), halves.arrivals.get(follower)
        goals = [tensor_of(call).clone() if arrival is None else stream_of(arrival, call) for call in reached]
        self.reached = reached if follower in self.entries else None
        return Passage([call[:2] for call in calls], outputs, goals)


@contextmanager
def _through(
    segment: Segment, net: nn.Module, calls: Iterable[Example], layers: Sequence[str], behind: Sequence[str] = ()
) -> Iterator[Advance]:
    """Passes through a segment of a network alone, which stop at its layers, or behind them."""
    short = {layer: layer.removeprefix(segment.prefix) for layer in layers}
    ends = [short[layer] for layer in behind]
    with lockstep(segment.of(net), map(copied, calls), [*short.values()], ends) as advance:
        yield lambda layer: advance(short[layer])
