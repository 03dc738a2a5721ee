"""Refitting layers in order of execution, so that every layer is fitted to inputs from layers that are refitted."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core import processes
from simprune.core.batches import copied, device_of, first_tensor, inputs_of, mask_at, move
from simprune.core.cost import Example
from simprune.core.example import rows_of
from simprune.core.heap import give_back
from simprune.core.holdout import held_out
from simprune.core.progress import progress
from simprune.edit.effects import Effects
from simprune.repair.gauss_newton import JUDGING, Pair, can_be_folded, fit_block
from simprune.repair.halves import Halves, Passage, stream_of
from simprune.repair.leading import Leading
from simprune.repair.lockstep import Advance, lockstep
from simprune.repair.repeats import Repeat, calls_of, fit_repeat
from simprune.repair.ridge import Ridge, fit
from simprune.repair.segments import Segment, outputs_left, run_through
from simprune.trace.axes import Axes, channel_axis, like
from simprune.trace.context import eval_mode, uncached
from simprune.trace.layers import channel_dim, matrix_of, output_dim, weight_of
from simprune.trace.precision import require_finite
from simprune.trace.shortcuts import Shortcut

BATCHES = 16  # times VALUES: a segment of which one batch makes more entries is not fitted as a whole
VALUES = 2**23  # outputs that a block is fitted to as a whole: bounds time and memory


@dataclass(frozen=True)
class Batch:
    """What is known of one batch: how many inputs come before it, how many it has, and the mask of every module."""

    first: int
    inputs: int
    mask: Callable[[str], Tensor | None]

    def held_out(self, value: Tensor, mask: Tensor | None) -> Tensor:
        """Which rows of an activation, inputs first, are held out; of tokens, without padding."""
        held = held_out(self.first, self.inputs, len(value))
        masked = mask is not None and _is_masked(value, mask)
        return held[:, None].expand(mask.shape)[mask.cpu()] if masked and mask is not None else held


Calls = tuple[Example, Example, Batch]  # of a module on one batch: the original's and the pruned network's arguments


@dataclass(frozen=True)
class Refit:
    """Relative squared error of one layer or block against the original's output, before and after; the ridge used."""

    layer: str
    before: float
    after: float
    ridge: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Repair:
    """What refitting needs to know.

    Args:
        small: the pruned network, changed in place.
        model: the original.
        effects: of the plan.
        normalisers: layer -> the BatchNorm that reads it.
        shortcuts: layer -> the shortcut around its block.
        ridge: of the fit (see `simprune.repair.ridge`).
        together: segments whose layers are at last fitted together.
        values: number of entries, of its output or of a layer in it, to which a segment is fitted.
        filters: convolutions in channel groups, which only segments change, and the BatchNorms behind them.
        repeats: layers that run more than once, with all modules that compute with their weight.
        notes: to which a line is added for every segment that is not fitted, with the reason.
        axes: of the original.
        halves: of blocks, whose last layers are fitted to the stream.
        leading: the ridges of these layers in a language model; None where they choose like all others.
        shared: whether layers are fitted to the batches of all processes, of which this one runs some.
        inputs: how many all processes have; None before `run`.
    """

    small: nn.Module
    model: nn.Module
    effects: Effects
    normalisers: Mapping[str, str]
    shortcuts: Mapping[str, Shortcut]
    ridge: Ridge
    together: Sequence[Segment] = ()
    values: int = VALUES
    repeats: Mapping[str, Repeat] = field(default_factory=dict)
    filters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    axes: Axes = field(default_factory=lambda: Axes({}, {}))
    halves: Halves = field(default_factory=Halves)
    leading: Leading | None = None
    shared: bool = False
    inputs: int | None = None

    def run(self, layers: Sequence[str], batches: Sequence[Any], title: str = "") -> list[Refit]:
        """Refit layers one after another, to inputs from layers that are refitted.

        Several processes share out the batches, unless segments or layers that run more than once are fitted.

        Args:
            layers: names, in order of execution; those that run more than once where they run last.
            batches: calibration inputs.
            title: of the progress that is shown; none without it.

        Returns:
            The errors before and after: of every layer, and of every block in `together` behind its layers.
        """
        known, first = list[Batch](), 0
        for batch in batches:
            known.append(Batch(first, rows_of(inputs_of(batch)), partial(mask_at, batch)))
            first += known[-1].inputs
        leading = None if self.leading is None else Leading(self.leading.leaders)  # nothing is fitted so far
        repair = replace(self, inputs=first, leading=leading)
        if 1 < processes.count() <= len(batches) and not self.together and not self.repeats:
            turn = slice(processes.rank(), None, processes.count())
            return replace(repair, shared=True)._run(layers, batches[turn], known[turn], title)
        return repair._run(layers, batches, known, title)

    def _run(self, layers: Sequence[str], batches: Sequence[Any], known: Sequence[Batch], title: str) -> list[Refit]:
        """`run`, on the batches of this process."""
        calls = [[move(inputs_of(batch), device_of(net)) for batch in batches] for net in (self.model, self.small)]
        refits: list[Refit] = []
        with uncached(self.model), uncached(self.small), torch.no_grad():  # blocks run more than once
            for stretch in self._stretches(layers):
                if stretch[0] in self.repeats:
                    refits.append(self._repeated(stretch[0], calls[0], calls[1], known))
                    continue
                units = self._units(stretch)
                entries, followers = [*units], self.halves.successors
                stops, behind = self._stops(units)
                with (
                    lockstep(self.model, calls[0], stops[0], behind) as original,
                    lockstep(self.small, calls[1], stops[1]) as pruned,
                ):
                    reached: list[Example] | None = None  # where the original's passes stand, if that is the next entry
                    for entry in progress(entries, title) if title else entries:
                        give_back()
                        segment, inside = units[entry]
                        originals, reached, entering = reached or original(entry), None, pruned(entry)
                        if segment is None:
                            entered = list(zip(originals, entering, known, strict=True))
                            refits.append(self._layer(entry, entered, behind=entry in behind))
                            continue
                        originals, entering = map(_copies, (originals, entering))
                        entered, passage = list(zip(originals, entering, known, strict=True)), None
                        if any(layer in self.halves.layers for layer in inside):
                            passage, follower = self._passage(entry, inside, entered, original)
                            reached = follower if followers.get(entry) in entries else None
                        stepped = self._is_stepped(entry, units)
                        # With halves the original's passes are behind the segment by now.
                        advance = original if stepped and passage is None else None, pruned if stepped else None
                        refits += self._segment(segment, inside, entered, passage, advance)
        return refits

    def _stretches(self, layers: Sequence[str]) -> list[list[str]]:
        """Layers that one pass in lockstep refits; those that run more than once by themselves."""
        stretches: list[list[str]] = []
        for layer in layers:
            if layer in self.repeats or not stretches or stretches[-1][0] in self.repeats:
                stretches.append([])
            stretches[-1].append(layer)
        return stretches

    def _units(self, layers: Sequence[str]) -> dict[str, tuple[Segment | None, list[str]]]:
        """Module to stop at -> the block or segment that begins there, if any, and its layers."""
        others = {shortcut.module for shortcut in self.shortcuts.values()}
        others |= {half.block for half in self.halves.layers.values()}
        others -= {part.name for part in self.together}
        segments = [*self.together, *(Segment(name, name, ()) for name in others)]
        units: dict[str, tuple[Segment | None, list[str]]] = {}
        for layer in layers:
            segment = next((part for part in segments if part.holds(layer)), None)
            units.setdefault(layer if segment is None else segment.entry, (segment, []))[1].append(layer)
        return units

    def _stops(self, units: Mapping[str, tuple[Segment | None, list[str]]]) -> tuple[list[list[str]], set[str]]:
        """Where passes of the original and of the pruned network stop, and the original's stops behind a module."""
        stops: list[dict[str, None]] = [{}, {}]  # as ordered sets
        behind: set[str] = set()
        followers = self.halves.successors
        for entry, (segment, inside) in units.items():
            halves = [layer for layer in inside if layer in self.halves.layers]
            ends = [layer for layer in halves if not self.halves.layers[layer].is_last]
            stepped = self._is_stepped(entry, units)
            steps = inside if stepped and not halves else ends
            stops[0] |= dict.fromkeys([entry, *steps])
            stops[1] |= dict.fromkeys([entry, *(inside if stepped else ())])
            behind |= {*ends, *(layer for layer in steps if self._narrows(layer))}
            if segment is None and self._narrows(entry) and entry not in followers.values():
                behind.add(entry)
            if entry in followers:
                stops[0][followers[entry]] = None
        return [[*some] for some in stops], behind

    def _is_stepped(self, entry: str, units: Mapping[str, tuple[Segment | None, list[str]]]) -> bool:
        """Whether the layers of a segment are fitted on the way through it, and not in passes of its own."""
        segment, _ = units[entry]
        own = segment is None or segment in self.together or any(other.startswith(f"{entry}.") for other in units)
        return not own

    def _passage(
        self, entry: str, layers: Sequence[str], calls: Sequence[Calls], original: Advance
    ) -> tuple[Passage, list[Example]]:
        """The streams on their way through a block; and what its follower gets, to which the original advances."""
        ends = [layer for layer in layers if layer in self.halves.layers and not self.halves.layers[layer].is_last]
        outputs = {layer: [_input(call).clone() for call in original(layer)] for layer in ends}
        follower, passes = self.halves.successors.get(entry), list[Example]()
        if follower is None:
            goals = [stream_of(self.model.get_submodule(entry), call) for call, *_ in calls]
        else:
            passes, arrival = original(follower), self.halves.arrivals.get(follower)
            goals = [_input(call).clone() if arrival is None else stream_of(arrival, call) for call in passes]
        return Passage([call[:2] for call in calls], outputs, goals), passes

    def _repeated(
        self, name: str, originals: Sequence[Example], inputs: Sequence[Example], batches: Sequence[Batch]
    ) -> Refit:
        """Refit a layer to the original's output in all its calls."""
        repeat, remaining, layer = self.repeats[name], self._remaining(name), self.small.get_submodule(name)
        along = partial(_inputs_first, batch=self.axes.batch(name, "input"))
        wanted = [
            _unpadded(along(output.index_select(channel_dim(layer), remaining)), batch.mask(name))
            for seen, batch in zip(calls_of(self.model, repeat.modules, originals), batches, strict=True)
            for _, output in seen
        ]

        def current() -> list[tuple[Tensor, Tensor]]:
            return [
                (_unpadded(along(x), batch.mask(name)), _unpadded(along(output), batch.mask(name)))
                for seen, batch in zip(calls_of(self.small, repeat.modules, inputs), batches, strict=True)
                for x, output in seen
            ]

        held = [
            batch.held_out(along(x), batch.mask(name))
            for seen, batch in zip(calls_of(self.small, repeat.modules, inputs), batches, strict=True)
            for x, _ in seen
        ]
        means = [self.model.get_buffer(f"{norm}.running_mean")[remaining] for norm in repeat.norms]
        return Refit(name, *fit_repeat(self.small, repeat, means, current, wanted, self.ridge, held))

    def _layer(
        self,
        name: str,
        calls: Sequence[Calls],
        block: Sequence[Calls] = (),
        passage: Passage | None = None,
        behind: bool = False,
    ) -> Refit:
        """Refit one layer to the original's output, plus what the shortcut around its block, if any, has lost.

        A layer that adds to the stream is fitted to the stream. `block`: calls of the block around the layer.
        `passage`: the streams there, for such a layer. `behind`: whether the original's calls hold what the layer gave,
        and not what it gets.
        """
        layer, source, remaining = self.small.get_submodule(name), self.model.get_submodule(name), self._remaining(name)

        normaliser, bias = self.normalisers.get(name), getattr(layer, "bias", None)
        through_origin = bias is None and normaliser is None
        per_token = channel_dim(layer) == -1  # a convolution's positions depend on each other
        along = partial(_inputs_first, batch=self.axes.batch(name, "input"))
        held = (
            batch.held_out(along(_input(call)), batch.mask(name) if per_token else None) for _, call, batch in calls
        )

        def pairs() -> Iterator[tuple[Tensor, Tensor]]:
            """One batch at a time: the outputs of a language model's head are large."""
            for index, (original, pruned, batch) in enumerate(calls):
                value = _input(pruned)
                if passage is not None:
                    half = self.halves.layers[name]
                    target, size = half.target(passage.wanted[index], passage.streams[index], remaining)
                    if through_origin:  # a row divided by a number is a row that counts less
                        value, target = value / size.to(value), target / size.to(target)
                else:
                    args, kwargs = original
                    output = args[0] if behind else source.forward(*args, **kwargs)
                    target = output.index_select(channel_dim(layer), remaining)
                if block and passage is None and name in self.shortcuts:
                    drift = self.shortcuts[name].drift(*block[index][:2], remaining)
                    target = target + like(drift, target, channel_dim(layer))
                mask = batch.mask(name) if per_token else None
                x, y = _unpadded(along(value), mask), _unpadded(along(target), mask)
                require_finite(x, f"the input of {name} in the pruned network")
                require_finite(y, f"the output of {name}")
                yield x, y

        leading = self.leading if passage is not None else None
        ridge = self.ridge if leading is None else leading.of(name)
        solved = fit(layer, pairs(), ridge, not through_origin, held, self.shared, self.inputs)
        if leading is not None:
            leading.follow(name, solved.ridge)
        layer.get_parameter("weight").copy_(weight_of(layer, solved.matrix))
        if bias is not None:
            bias.copy_(solved.intercept)
        elif normaliser is not None:
            mean = self.model.get_buffer(f"{normaliser}.running_mean")
            self.small.get_buffer(f"{normaliser}.running_mean").copy_(mean[remaining] - solved.intercept)
        return Refit(name, solved.before, solved.after, solved.ridge)

    def _segment(
        self,
        segment: Segment,
        layers: Sequence[str],
        calls: Sequence[Calls],
        passage: Passage | None,
        advance: tuple[Advance | None, Advance | None],
    ) -> list[Refit]:
        """Refit the layers of a block or segment in order, then all together.

        Args:
            segment: the block or segment.
            layers: in it, in order of execution.
            calls: of the segment.
            passage: the streams on the way through it; None without halves.
            advance: to a layer, in the original and in the pruned network; None for passes through the segment alone.
        """
        originals, inputs, batches = zip(*calls, strict=True)
        inner = {layer: layer.removeprefix(segment.prefix) for layer in layers}
        by_layer = [layer for layer in layers if layer not in self.halves.layers]
        behind = [layer for layer in by_layer if self._narrows(layer)]
        with ExitStack() as stack:
            original, pruned = advance
            if original is None:
                theirs = map(copied, originals if by_layer else ())
                within = [inner[layer] for layer in by_layer]
                ends = [inner[layer] for layer in behind]
                nested = stack.enter_context(lockstep(segment.of(self.model), theirs, within, ends))
                original = _renamed(nested, inner)
            if pruned is None:
                own = stack.enter_context(lockstep(segment.of(self.small), map(copied, inputs), [*inner.values()]))
                pruned = _renamed(own, inner)
            refits = []
            for layer in layers:
                reached, half = pruned(layer), self.halves.layers.get(layer)
                wanted = reached if half is not None else original(layer)  # the stream says what a half should give
                pairs = list(zip(wanted, reached, batches, strict=True))
                if half is not None and passage is not None:
                    passage.reach(layer, half)
                refits.append(self._layer(layer, pairs, calls, passage if half else None, layer in behind))
                if half is not None and passage is not None:
                    values = [_input(call) for call in reached]
                    passage.leave(layer, half, self.small.get_submodule(layer), values, self._remaining(layer))
        goals = None if passage is None else passage.goals
        return [*refits, *self._whole(segment, calls, goals)] if segment in self.together else refits

    def _whole(self, segment: Segment, calls: Sequence[Calls], goals: Sequence[Tensor] | None = None) -> list[Refit]:
        """Refit the layers of a segment together, to its output on as many inputs as `values` allows."""
        source, small = segment.of(self.model), segment.of(self.small)
        short = {layer: layer.removeprefix(segment.prefix) for layer in segment.layers}
        pairs: list[Pair] = []
        held: list[Tensor] = []
        along = self.axes.batch(segment.end, "output")
        with eval_mode(source):
            whole = first_tensor(source(*copied(calls[0][0][0]), **copied(calls[0][0][1])))
            assert whole is not None
            current, largest = run_through(small, short.values(), calls[0][1])
            axis, last = channel_axis(whole, segment.axis), segment.layers[-1]
            width = len(matrix_of(self.model.get_submodule(last)))
            remaining = outputs_left(self._remaining(last), width, self.effects, whole, current, axis)
            reason = ""
            if remaining is None:
                reason = "which of its outputs are left cannot be told from the plan"
            elif (most := max(whole.numel(), largest)) > BATCHES * self.values:
                reason = f"a batch makes {most:,} entries in it; give batches of {BATCHES * self.values:,} at most"
            if reason or remaining is None:
                self.notes.append(f"{segment.name or 'the model'} was not fitted as a whole: {reason}")
                return []
            enough = -(-self.values * calls[0][2].inputs // most)  # inputs
            for index, (original, pruned, batch) in enumerate(calls):
                if batch.first >= enough:
                    break
                output = stream_of(source, original) if goals is None else goals[index]
                target = output.index_select(axis, remaining)
                mask, rows = batch.mask(segment.name), target.shape[along]
                tokens = mask is not None and axis == target.ndim - 1 and _is_masked(target, mask)
                counts = mask.to(target)[..., None] if mask is not None and tokens else 1.0
                used = torch.arange(rows, device=target.device) * batch.inputs // rows + batch.first < enough
                counts = counts * used.to(target.real).view([-1 if dim == along else 1 for dim in range(target.ndim)])
                pairs.append((pruned, target, counts))
                held.append(held_out(batch.first, batch.inputs, rows, JUDGING))
        norms = {layer: behind[0] for layer, behind in self.filters.items() if len(behind) == 1}
        inside = {name for name, module in small.named_modules() if can_be_folded(module)}
        behind = {layer: {**self.normalisers, **norms}.get(layer, "").removeprefix(segment.prefix) for layer in short}
        folded = {short[layer]: norm if norm in inside else None for layer, norm in behind.items()}
        name = segment.name or "the model"
        try:
            return [Refit(name, *fit_block(small, folded, pairs, axis=axis, batch=along, held=held))]
        except NotImplementedError as error:  # some operators, such as grid_sample, have no forward derivative in torch
            self.notes.append(f"{name} was not fitted as a whole: {str(error).partition(chr(10))[0]}")
            return []

    def _narrows(self, name: str) -> bool:
        """Whether what a layer of the original gives is mostly no larger than what it gets, and so no loss to hold."""
        outputs, inputs = matrix_of(self.model.get_submodule(name)).shape
        return outputs <= inputs

    def _remaining(self, name: str) -> Tensor:
        """Outputs of the original's layer that the smaller one still has."""
        source = self.model.get_submodule(name)
        names = self.repeats[name].modules if name in self.repeats else (name,)
        removed = {i for each in names for i in self.effects.removed.get((f"{each}.weight", output_dim(source)), ())}
        indices = [index for index in range(matrix_of(source).shape[0]) if index not in removed]
        return torch.tensor(indices, device=device_of(self.small))


def _copies(calls: Sequence[Example]) -> list[Example]:
    """Arguments into which modules may write."""
    return [copied(call) for call in calls]


def _renamed(advance: Advance, names: Mapping[str, str]) -> Advance:
    """An advance by other names of the layers."""
    return lambda layer: advance(names[layer])


def _is_masked(value: Tensor, mask: Tensor) -> bool:
    """Whether a value is tokens (N, T, D) of which a mask (N, T) tells the padding."""
    return value.ndim == 3 and value.shape[:2] == mask.shape


def _inputs_first(value: Tensor, batch: int) -> Tensor:
    """An activation whose inputs lie along dimension `batch`, with that dimension first."""
    return value.movedim(batch, 0)


def _unpadded(value: Tensor, mask: Tensor | None) -> Tensor:
    """Tokens (N, T, D) without the padding, as (tokens, D); anything else as it is."""
    return value[mask.to(value.device)] if mask is not None and _is_masked(value, mask) else value


def _input(call: Example) -> Tensor:
    value = first_tensor(call)
    assert value is not None
    return value
