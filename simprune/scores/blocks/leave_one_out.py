"""Leave one out (Pons et al., "Effective Layer Pruning Through Similarity Metric Perspective", 2024): how similar the
final representation stays when a block is bypassed."""

from collections.abc import Iterable

from torch import Tensor, nn

from simprune.core.batches import call, checked, first_tensor, mask_of
from simprune.core.progress import progress
from simprune.core.registry import register
from simprune.core.rows import Rows
from simprune.scores.blocks._context import BlockContext, as_redundancy
from simprune.trace.bypass import Bypass, without
from simprune.trace.context import evaluation, uncached
from simprune.trace.hooks import hooks
from simprune.trace.sites import Site


@register("block_score", "leave_one_out", source="Pons et al. 2024")
def leave_one_out(context: BlockContext) -> dict[str, float]:
    """Similarity of the inputs of the network's last layer with and without a block.

    Every block is bypassed on its own. Cost: one forward pass over the calibration batches per block, and one more.
    """
    model, measure, stream = context.network.model, context.measure, context.stream
    batches = list(checked(context.calibration, "calibration"))
    labels = stream.labels_for(measure)
    axis = context.network.axes.of("", "output")
    original = measure.prepare(final_rows(model, batches, axis), labels)
    scores = {}
    for block in progress(stream.blocks, "leave one out"):
        with without(model, block.name, Bypass(context.network.visits[block.name].layout(), block.replace == "zero")):
            rows = final_rows(model, batches, axis)
        scores[block.name] = as_redundancy(measure, measure.compare(original, measure.prepare(rows, labels)))
    return scores


def final_rows(model: nn.Module, batches: Iterable, axis: int | None = None) -> Tensor:
    """(inputs, width) inputs of the last linear layer that runs, means over positions; without one, the outputs.

    Args:
        model: the network.
        batches: its inputs.
        axis: along which the channels of its output lie (see `simprune.trace.axes`).
    """
    rows = Rows()
    last: list[Tensor] = []

    def see(_: nn.Module, args: tuple, kwargs: dict) -> None:
        value = first_tensor((*args, *kwargs.values()))
        if value is not None:
            last[:] = [value]

    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    with evaluation(model), uncached(model), hooks([(layer, see) for layer in layers]):
        for batch in batches:
            last.clear()
            output = call(model, batch)
            value, along = (last[0], -1) if last and len(last[0]) == len(output) else (output, axis)
            rows.add(Site("the last layer", "pool", mask=mask_of(batch), axis=along).rows(value).float())
    return rows.tensor()
