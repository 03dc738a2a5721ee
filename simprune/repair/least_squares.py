"""Least squares: layer after layer is solved for the output of the original's layer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import nn

from simprune.core.heap import give_back
from simprune.core.registry import register
from simprune.repair._task import Task
from simprune.repair.by_output import divergence_by_ridge, is_language_model
from simprune.repair.halves import find_halves
from simprune.repair.mirror import with_mirrored
from simprune.repair.nearer import with_segments_if_nearer
from simprune.repair.refit import VALUES, Refit, Repair
from simprune.repair.repeats import repeated
from simprune.repair.ridge import Ridge
from simprune.repair.segments import Segment, find_segments
from simprune.trace.execution import Execution, execution
from simprune.trace.layers import can_be_fitted, output_dim
from simprune.trace.network import Network
from simprune.trace.shortcuts import Shortcut, find_shortcuts


@register("repair", "least_squares", title="reconstructed", order=1)
def least_squares(task: Task, *, ridge: Ridge = "auto", mirror: int | None = None) -> list[Refit]:
    """Every convolution and linear layer behind the first edit is solved for the original's output.

    Its inputs are those that it gets in the pruned network, so errors of earlier layers are corrected and not passed
    on; the last layer of a residual block also takes back what the shortcut has lost. A convolution without bias puts
    its intercept into the BatchNorm behind it; a layer with neither is fitted through the origin, and so is one whose
    BatchNorm reads other layers too. A layer that runs more than once is fitted to all its calls together. Grouped
    convolutions, subclasses that compute something else than a product with their weight, and layers whose weight is
    used elsewhere in another way (an embedding) stay as they are.

    Cost: one forward pass of both networks over the calibration batches, and two for every layer that runs more than
    once, plus one solve per layer, of as many unknowns as it has inputs x kernel, or rows where these are fewer.

    Args:
        task: what is repaired.
        ridge: on the change of the weights, relative to the mean variance of the inputs; "auto" takes for every layer
            the one with which a quarter of the inputs, held out, is predicted best, and leaves a layer as it is where
            none predicts them better than its present weights. For layers that add to the stream of a language model
            it takes the one with which the answers to that quarter diverge least; that costs about three more repairs.
        mirror: dimension of the inputs along which they are mirrored, which gives twice as many, such as 3 for images
            (N, C, H, W); takes twice the time.
    """
    return refit(with_mirrored(task, mirror), ridge)


def refit(
    task: Task, ridge: Ridge = "auto", together: Callable[[str], bool] = lambda _: False, values: int = VALUES
) -> list[Refit]:
    """Refit layers in order of execution; and those of every segment for which `together` holds as a whole.

    Args:
        task: what is repaired.
        ridge: of the fits of layers.
        together: whether a block, by name, or a layer of a chain takes part in fits of whole segments.
        values: a segment is fitted to as many inputs as give so many entries of its output, or of a layer in it.

    Returns:
        The errors of layers and segments before and after.
    """
    network, effects = task.network, task.effects
    give_back()
    original, pruned = network.execution, execution(task.small, network.example)
    repeats, alone = repeated(task.small, pruned, original, effects.dropped)

    def touched(name: str) -> bool:
        """Whether the plan changes the layer's input, or removes the layer with a block."""
        inputs = 1 - output_dim(network.model.get_submodule(name))
        return effects.inside_dropped(name) or (f"{name}.weight", inputs) in effects.removed

    routed = tuple(f"{member}." for mixture in network.mixtures.values() for member in mixture.members)
    without_experts = _behind_experts(task)
    first = next(
        (index for index, name in enumerate(original.calls) if touched(name) or name in without_experts),
        len(original.calls),
    )
    behind = {*original.calls[first:]}
    last = {name: index for index, name in enumerate(pruned.calls)}
    for name, repeat in repeats.items():  # it is fitted where it runs last, when all else before it is
        last[name] = max(last[module] for module in repeat.modules)
    others = {module for name, repeat in repeats.items() for module in repeat.modules if module != name}
    chosen = [name for name in sorted(last, key=last.__getitem__) if task.layers(name) and name not in others]
    task.notes.extend(_experts_stay([name for name in chosen if name.startswith(routed)], network))
    chosen = [name for name in chosen if not name.startswith(routed)]
    layers = [name for name in chosen if behind.intersection(repeats[name].modules if name in repeats else (name,))]
    task.notes.extend(f"{name} was not refitted: {alone[name]}" for name in layers if name in alone)
    layers = [name for name in layers if name not in alone]
    halves = find_halves(
        task.small, network, [name for name in chosen if name not in {*repeats, *alone}], effects.dropped
    )
    whole = tuple(f"{half.block}." for half in halves.layers.values())

    def is_fitted(name: str) -> bool:
        """Whether a layer adds to the stream, has lost inputs, or stands in no block of halves."""
        return name in layers and (name in halves.layers or touched(name) or not name.startswith(whole))

    layers = [name for name in chosen if is_fitted(name) or name in halves.before_gaps]
    task.notes.extend(_of_other_classes(task, behind))
    task.notes.extend(_through_the_origin(task.small, layers, pruned))
    shortcuts = find_shortcuts(task.small, network.block_calls, [name for name in layers if name not in repeats])
    free = ({*chosen} - {*repeats, *alone}) | {name for name in pruned.filters if task.layers(name)}
    order = [name for name in pruned.sequence if name in free]
    segments = [segment for segment in _segments(network, order, shortcuts) if behind.intersection(segment.layers)]
    segments = [segment for segment in segments if all(map(together, segment.names))]
    repair = Repair(task.small, network.model, effects, pruned.normalisers, shortcuts, ridge, segments, values, repeats)
    repair = replace(repair, filters=pruned.filters, notes=task.notes, axes=network.axes, halves=halves)
    speaks = ridge == "auto" and is_language_model(network, task.batches[0])
    network.forget()
    tried = divergence_by_ridge(repair, layers, network.model, task.batches) if speaks else {}
    if tried:
        best = min(tried, key=tried.__getitem__)
        if best is None:
            task.notes.append(
                "nothing was refitted, because no refit brought the answers to inputs held out of it nearer: "
                + ", ".join(f"{nats:.3g} nats per token with {_with(ridge)}" for ridge, nats in tried.items())
            )
            return []
        repair = replace(repair, stream=best)
    if segments:
        return with_segments_if_nearer(repair, layers, network, task.batches)
    return repair.run(layers, task.batches, "reconstruct")


def _with(ridge: float | None) -> str:
    return "no repair" if ridge is None else f"a ridge of {ridge:g}"


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
