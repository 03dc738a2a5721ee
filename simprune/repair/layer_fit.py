"""The fit of one layer to what the original gives there, or to the stream that it adds to."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import repeat

from torch import Tensor

from simprune.core.cost import Example
from simprune.repair.calls import Batch, Calls, inputs_first, tensor_of, unpadded
from simprune.repair.halves import Passage
from simprune.repair.refit import Refit, Repair
from simprune.repair.repeats import calls_of, fit_repeat
from simprune.repair.ridge import fit
from simprune.trace.axes import like
from simprune.trace.layers import channel_dim, weight_of
from simprune.trace.precision import require_finite


def fit_layer(
    repair: Repair,
    name: str,
    calls: Sequence[Calls],
    lost: Iterable[Tensor] | None = None,
    passage: Passage | None = None,
    behind: bool = False,
) -> Refit:
    """Refit one layer, in place, to the original's output, plus what the shortcut around its block has lost.

    Args:
        repair: what refitting needs to know.
        name: of the layer.
        calls: of the layer.
        lost: by the shortcut, batch by batch; None without one.
        passage: the streams around a layer that adds to the stream: it is fitted to the stream.
        behind: whether the original's calls hold what the layer gave, and not what it gets.

    Returns:
        The errors before and after.
    """
    layer, source = repair.small.get_submodule(name), repair.model.get_submodule(name)
    remaining, normaliser, bias = repair.remaining(name), repair.normalisers.get(name), getattr(layer, "bias", None)
    through_origin = bias is None and normaliser is None
    per_token = channel_dim(layer) == -1  # a convolution's positions depend on each other
    along = partial(inputs_first, batch=repair.axes.batch(name, "input"))
    held = (batch.held_out(along(tensor_of(call)), batch.mask(name) if per_token else None) for _, call, batch in calls)

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        """One batch at a time: the outputs of a language model's head are large."""
        drifts = repeat(None) if lost is None else lost
        for index, ((original, pruned, batch), drift) in enumerate(zip(calls, drifts, strict=False)):
            value = tensor_of(pruned)
            if passage is not None:
                half = repair.halves.layers[name]
                target, size = half.target(passage.wanted[index], passage.streams[index], remaining)
                if through_origin:  # a row divided by a number is a row that counts less
                    value, target = value / size.to(value), target / size.to(target)
            else:
                args, kwargs = original
                output = args[0] if behind else source.forward(*args, **kwargs)
                target = output.index_select(channel_dim(layer), remaining)
            if drift is not None:
                target = target + like(drift, target, channel_dim(layer))
            mask = batch.mask(name) if per_token else None
            x, y = unpadded(along(value), mask), unpadded(along(target), mask)
            require_finite(x, f"the input of {name} in the pruned network")
            require_finite(y, f"the output of {name}")
            yield x, y

    leading = repair.leading if passage is not None else None
    ridge = repair.ridge if leading is None else leading.of(name)
    solved = fit(layer, pairs(), ridge, not through_origin, held, repair.shared, repair.inputs)
    if leading is not None:
        leading.follow(name, solved.ridge)
    layer.get_parameter("weight").copy_(weight_of(layer, solved.matrix))
    if bias is not None:
        bias.copy_(solved.intercept)
    elif normaliser is not None:
        mean = repair.model.get_buffer(f"{normaliser}.running_mean")
        repair.small.get_buffer(f"{normaliser}.running_mean").copy_(mean[remaining] - solved.intercept)
    return Refit(name, solved.before, solved.after, solved.ridge)


def fit_repeated(
    repair: Repair, name: str, originals: Sequence[Example], inputs: Sequence[Example], batches: Sequence[Batch]
) -> Refit:
    """Refit a layer that runs more than once, in place, to the original's output in all its calls.

    Args:
        repair: what refitting needs to know.
        name: of the layer.
        originals: calls of the original.
        inputs: calls of the pruned network.
        batches: what is known of every batch.

    Returns:
        The errors before and after.
    """
    layers, remaining, layer = repair.repeats[name], repair.remaining(name), repair.small.get_submodule(name)
    along = partial(inputs_first, batch=repair.axes.batch(name, "input"))
    wanted = [
        unpadded(along(output.index_select(channel_dim(layer), remaining)), batch.mask(name))
        for seen, batch in zip(calls_of(repair.model, layers.modules, originals), batches, strict=True)
        for _, output in seen
    ]

    def current() -> list[tuple[Tensor, Tensor]]:
        return [
            (unpadded(along(x), batch.mask(name)), unpadded(along(output), batch.mask(name)))
            for seen, batch in zip(calls_of(repair.small, layers.modules, inputs), batches, strict=True)
            for x, output in seen
        ]

    held = [
        batch.held_out(along(x), batch.mask(name))
        for seen, batch in zip(calls_of(repair.small, layers.modules, inputs), batches, strict=True)
        for x, _ in seen
    ]
    means = [repair.model.get_buffer(f"{norm}.running_mean")[remaining] for norm in layers.norms]
    return Refit(name, *fit_repeat(repair.small, layers, means, current, wanted, repair.ridge, held))
