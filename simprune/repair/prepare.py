"""What a repair refits: which layers, in which order, by themselves or in segments; and which stay, with the reason."""

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from simprune.core.example import as_batch
from simprune.core.tokens import speaks
from simprune.repair._task import Task
from simprune.repair.halves import Halves, find_halves
from simprune.repair.leading import Leading
from simprune.repair.refit import Repair
from simprune.repair.repeats import Repeat, repeated
from simprune.repair.ridge import Ridge
from simprune.repair.segments import Segment, find_segments
from simprune.trace.execution import Execution, execution
from simprune.trace.layers import can_be_fitted, output_dim
from simprune.trace.network import Network
from simprune.trace.shortcuts import Shortcut, find_shortcuts


def prepare(task: Task, ridge: Ridge, together: Callable[[str], bool], values: int) -> tuple[Repair, list[str]]:
    """What refitting needs to know, and the layers to refit, in order of execution.

    Only layers that run behind the first edit are refitted. The task gets a note for layers that stay as they are.

    Args:
        task: what is repaired.
        ridge: of the fits of layers.
        together: whether a block, by name, or a layer of a chain takes part in fits of whole segments.
        values: a segment is fitted to as many inputs as give so many entries of its output, or of a layer in it.

    Returns:
        The repair and the names of layers.
    """
    network, small, effects = task.network, task.small, task.effects
    original, pruned = network.execution, execution(small, network.example)
    repeats, alone = repeated(small, pruned, original, effects.dropped)
    behind = _behind_first_edit(task, original)
    candidates = _without_experts(_in_order(task, pruned, repeats), task)

    shorter = _of_fewer_positions(candidates, task)
    candidates = [name for name in candidates if name not in shorter]
    reached = [name for name in candidates if behind.intersection(_modules(name, repeats))]
    task.notes.extend(f"{name} was not refitted: {alone[name]}" for name in reached if name in alone)
    once = [name for name in candidates if name not in {*repeats, *alone}]
    halves = find_halves(small, network, once, effects.dropped)
    fitted = _worth_fitting([name for name in reached if name not in alone], halves, task)
    layers = [name for name in candidates if name in fitted or name in halves.before_gaps]
    task.notes.extend(_of_other_classes(task, behind))
    if shorter:
        task.notes.append(f"{', '.join(shorter)}: not refitted, because the plan removes some of their positions")
    task.notes.extend(_through_the_origin(small, layers, pruned))

    shortcuts = find_shortcuts(small, network.block_calls, [name for name in layers if name not in repeats])
    free = {*once} | {name for name in pruned.filters if task.layers(name)}
    leaders = {name for name in halves.layers if name in halves.before_gaps or _touched(name, task)}
    leading = Leading(leaders) if ridge == "auto" and _is_language_model(network) else None
    segments = [
        segment
        for segment in _segments(network, [name for name in pruned.sequence if name in free], shortcuts)
        if behind.intersection(segment.layers) and all(map(together, segment.names))
    ]
    repair = Repair(
        small,
        network.model,
        effects,
        pruned.normalisers,
        shortcuts,
        ridge,
        segments,
        values,
        repeats,
        filters=pruned.filters,
        notes=task.notes,
        axes=network.axes,
        halves=halves,
        leading=leading,
    )
    return repair, layers


def _is_language_model(network: Network) -> bool:
    """Whether the network's one output is scores of the tokens that it takes."""
    return len(network.outputs) == 1 and speaks(network.model, as_batch(network.example), network.output)


def _modules(name: str, repeats: Mapping[str, Repeat]) -> tuple[str, ...]:
    """All modules that compute with a layer's weight."""
    return repeats[name].modules if name in repeats else (name,)


def _touched(name: str, task: Task) -> bool:
    """Whether the plan changes the layer's input, or removes the layer with a block."""
    inputs = 1 - output_dim(task.network.model.get_submodule(name))
    return task.effects.inside_dropped(name) or (f"{name}.weight", inputs) in task.effects.removed


def _behind_first_edit(task: Task, original: Execution) -> set[str]:
    """The layers that run from the first one on whose input the plan changes."""
    behind_experts, calls = _behind_experts(task), list(original.calls)
    first = next((index for index, name in enumerate(calls) if _touched(name, task) or name in behind_experts), None)
    return set() if first is None else {*calls[first:]}


def _in_order(task: Task, pruned: Execution, repeats: Mapping[str, Repeat]) -> list[str]:
    """The layers that the rules of the repair choose; one that runs more than once where it runs last."""
    last = {name: index for index, name in enumerate(pruned.calls)}
    for name, repeat in repeats.items():  # it is fitted when all else before it is
        last[name] = max(last[module] for module in repeat.modules)
    others = {module for name, repeat in repeats.items() for module in repeat.modules if module != name}
    return [name for name in sorted(last, key=last.__getitem__) if task.layers(name) and name not in others]


def _of_fewer_positions(layers: Sequence[str], task: Task) -> list[str]:
    """The layers that mix positions, such as those of MLP-Mixer, of whose own positions, channels, some are removed."""
    mixers = task.network.costs.mixers
    return [name for name in layers if mixers.get(f"{name}.weight") in task.effects.removed]


def _without_experts(names: Sequence[str], task: Task) -> list[str]:
    """The layers that belong to no expert; with a note where experts stay as they are."""
    routed = tuple(f"{member}." for mixture in task.network.mixtures.values() for member in mixture.members)
    task.notes.extend(_experts_stay([name for name in names if name.startswith(routed)], task.network))
    return [name for name in names if not name.startswith(routed)]


def _worth_fitting(layers: Sequence[str], halves: Halves, task: Task) -> set[str]:
    """The layers that add to the stream, have lost inputs, or stand in no block of halves."""
    blocks = tuple(f"{half.block}." for half in halves.layers.values())
    return {name for name in layers if name in halves.layers or _touched(name, task) or not name.startswith(blocks)}


def _segments(network: Network, order: Sequence[str], shortcuts: Mapping[str, Shortcut]) -> list[Segment]:
    """Residual blocks, and what lies beside them."""
    taken = {shortcut.module: shortcut.axis for shortcut in shortcuts.values()}
    inside = {name: tuple(layer for layer in order if layer.startswith(f"{name}.")) for name in taken}
    blocks = [Segment(name, name, inside[name], axis) for name, axis in taken.items()]
    return [*blocks, *find_segments(network, order, taken.keys())]


def _of_other_classes(task: Task, behind: set[str]) -> list[str]:
    """A note for layers behind the first edit whose class computes something else than a product with the weight."""
    order = list(task.network.visits)
    start = next((index for index, name in enumerate(order) if name in behind), len(order))
    others: dict[str, list[str]] = {}
    for name in order[start:]:
        layer = task.network.model.get_submodule(name)
        if isinstance(layer, nn.Linear) and not can_be_fitted(layer) and not task.effects.inside_dropped(name):
            others.setdefault(type(layer).__name__, []).append(name)
    return [
        f"{', '.join(names)}: not refitted, because {kind} computes something else than a product with its weight"
        for kind, names in others.items()
    ]


def _behind_experts(task: Task) -> set[str]:
    """The modules that run after a mixture has lost experts, and those inside it."""
    mixtures = {edit.name for edit in task.plan.of_kind("experts")}
    order = list(task.network.visits) if mixtures else []
    first = next((index for index, name in enumerate(order) if name in mixtures or "" in mixtures), len(order))
    return {*order[first:]}


def _experts_stay(layers: Sequence[str], network: Network) -> list[str]:
    """A note for every mixture whose experts are layers in a list."""
    lists = [mixture.container for mixture in network.mixtures.values() if mixture.members]
    return [
        f"experts in {name} were not refitted: which inputs they get depends on the router"
        for name in lists
        if any(layer.startswith(f"{name}.") for layer in layers)
    ]


def _through_the_origin(small: nn.Module, layers: Sequence[str], pruned: Execution) -> list[str]:
    """A note for every BatchNorm that cannot hold the intercepts of the layers before it."""
    before: dict[str, list[str]] = {}
    for name in layers:
        if getattr(small.get_submodule(name), "bias", None) is None:
            for norm in pruned.lent.get(name, ()):
                before.setdefault(norm, []).append(name)
    return [
        f"{', '.join(names)}: fitted without an intercept, because the mean of {norm} is not theirs alone"
        for norm, names in before.items()
    ]
