"""The fit of all layers of a segment together, to what the original's gives at its end."""

from collections.abc import Sequence

import torch
from torch import Tensor

from simprune.core.batches import copied, first_tensor
from simprune.core.holdout import held_out
from simprune.repair.calls import Calls, is_masked
from simprune.repair.gauss_newton import JUDGING, Pair, can_be_folded, fit_block
from simprune.repair.halves import stream_of
from simprune.repair.refit import Refit, Repair
from simprune.repair.segments import Segment, outputs_left, run_through
from simprune.trace.axes import channel_axis
from simprune.trace.context import eval_mode
from simprune.trace.layers import matrix_of

BATCHES = 16  # times `Repair.values`: a segment of which one batch makes more entries is not fitted as a whole


def fit_segment(
    repair: Repair, segment: Segment, calls: Sequence[Calls], goals: Sequence[Tensor] | None = None
) -> list[Refit]:
    """Refit the layers of a segment together, in place, to its output on as many inputs as `repair.values` allows.

    Args:
        repair: what refitting needs to know; it gets a note where the segment cannot be fitted.
        segment: of at least two layers.
        calls: of the segment.
        goals: what is wanted at its end, batch by batch; None for what the original's segment gives.

    Returns:
        The errors of the segment before and after; none where it cannot be fitted.
    """
    source, small = segment.of(repair.model), segment.of(repair.small)
    short = {layer: layer.removeprefix(segment.prefix) for layer in segment.layers}
    pairs: list[Pair] = []
    held: list[Tensor] = []
    along = repair.axes.batch(segment.end, "output")
    with eval_mode(source):
        whole = first_tensor(source(*copied(calls[0][0][0]), **copied(calls[0][0][1])))
        assert whole is not None
        current, largest = run_through(small, short.values(), calls[0][1])
        axis, last = channel_axis(whole, segment.axis), segment.layers[-1]
        width = len(matrix_of(repair.model.get_submodule(last)))
        remaining = outputs_left(repair.remaining(last), width, repair.effects, whole, current, axis)
        reason = ""
        if remaining is None:
            reason = "which of its outputs are left cannot be told from the plan"
        elif (most := max(whole.numel(), largest)) > BATCHES * repair.values:
            reason = f"a batch makes {most:,} entries in it; give batches of {BATCHES * repair.values:,} at most"
        if reason or remaining is None:
            repair.notes.append(f"{segment.name or 'the model'} was not fitted as a whole: {reason}")
            return []
        enough = -(-repair.values * calls[0][2].inputs // most)  # inputs
        for index, (original, pruned, batch) in enumerate(calls):
            if batch.first >= enough:
                break
            output = stream_of(source, original) if goals is None else goals[index]
            target = output.index_select(axis, remaining)
            mask, rows = batch.mask(segment.name), target.shape[along]
            tokens = mask is not None and axis == target.ndim - 1 and is_masked(target, mask)
            counts = mask.to(target)[..., None] if mask is not None and tokens else 1.0
            used = torch.arange(rows, device=target.device) * batch.inputs // rows + batch.first < enough
            counts = counts * used.to(target.real).view([-1 if dim == along else 1 for dim in range(target.ndim)])
            pairs.append((pruned, target, counts))
            held.append(held_out(batch.first, batch.inputs, rows, JUDGING))
    norms = {layer: behind[0] for layer, behind in repair.filters.items() if len(behind) == 1}
    inside = {name for name, module in small.named_modules() if can_be_folded(module)}
    behind = {layer: {**repair.normalisers, **norms}.get(layer, "").removeprefix(segment.prefix) for layer in short}
    folded = {short[layer]: norm if norm in inside else None for layer, norm in behind.items()}
    name = segment.name or "the model"
    try:
        return [Refit(name, *fit_block(small, folded, pairs, axis=axis, batch=along, held=held))]
    except NotImplementedError as error:  # some operators, such as grid_sample, have no forward derivative in torch
        repair.notes.append(f"{name} was not fitted as a whole: {str(error).partition(chr(10))[0]}")
        return []
