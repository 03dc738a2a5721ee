"""Data-free repair: every removed channel is merged into the remaining channel whose weights are most like its own.

Neuron merging (Kim et al., 2020, arXiv:2010.13160) with its cosine on weights and BatchNorm together. If channel i is
s times channel j at all its producers, with s > 0, then so it is behind a ReLU, and readers that take s times their
weights of i from j lose nothing. Else s is the least-squares scale of i's weights on j's.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from simprune.core.registry import register
from simprune.core.structures import Slice
from simprune.edit.effects import unit_edits
from simprune.repair._task import Task
from simprune.repair.refit import Refit
from simprune.trace.layers import output_dim
from simprune.trace.units import unit_rows, weight_slices


@register("repair", "fold", title="folded", order=0, data=False)
@torch.no_grad()
def fold(task: Task) -> list[Refit]:
    """Without data, the weights that readers have for removed channels are added to those of similar ones.

    In place; heads are folded like channels. The running variance of a BatchNorm behind a reader of nothing but one
    group is scaled by how much the fold changes the variance of what the reader gives, were the producers' inputs
    white. Readers that are grouped convolutions stay as they are, and so do those whose weight is used elsewhere too.
    Cost O(units^2 x weights of one unit) per edit.

    Args:
        task: what is repaired; `chosen` tells by name whether a reader takes part.

    Returns:
        No errors, because nothing is fitted.
    """
    model, normalisers, effects = task.network.model, task.network.normalisers, task.effects
    shared = task.network.execution.elsewhere
    folded: dict[str, Tensor] = {}  # in the original's numbering
    ratios: dict[str, Tensor] = {}
    for edit, coupling in unit_edits(task.plan, task.network):
        weights, biases = _affine_maps(model, coupling.slices, normalisers)
        gone = [number for number, unit in enumerate(coupling.units) if set(unit) <= set(edit.indices)]
        merge = _merge(torch.cat([weights, biases], 1), gone)
        for part in coupling.slices:
            reads = part.side == "in" and part.tensor.endswith("weight") and not part.inputs
            if not reads or not task.chosen(part.module):
                continue
            if part.module in shared:
                others = " and ".join(other or "the model itself" for other in shared[part.module])
                task.notes.append(f"nothing was folded into {part.module}: its weight is also used by {others}")
                continue
            weight = folded.setdefault(part.tensor, model.get_parameter(part.tensor).detach().clone())
            entries = weight.movedim(part.dim, 0)
            index = torch.tensor(part.indices, device=weight.device)
            before = entries[index].double()
            after = torch.einsum("ji,i...->j...", merge.to(before), before)
            entries[index] = after.to(weight)
            if part.module in normalisers and index.numel() == weight.shape[part.dim]:
                covariance = (weights @ weights.T).to(before)
                ratios[part.module] = _variance(after, covariance) / _variance(before, covariance)
    plain = {name for name, _ in task.small.named_parameters(remove_duplicate=False)}  # a weight under a mask is not
    for tensor, weight in folded.items():
        if tensor in plain and not effects.inside_dropped(tensor):
            for dim, length in enumerate(weight.shape):
                remaining = torch.tensor(effects.remaining(tensor, dim, length), device=weight.device)
                weight = weight.index_select(dim, remaining)
            task.small.get_parameter(tensor).copy_(weight)
    for layer, ratio in ratios.items():
        if f"{layer}.weight" in plain and not effects.inside_dropped(layer):
            rows = effects.remaining(f"{layer}.weight", output_dim(model.get_submodule(layer)), len(ratio))
            task.small.get_buffer(f"{normalisers[layer]}.running_var").mul_(ratio[rows])
    return []


def _affine_maps(model: nn.Module, slices: Sequence[Slice], normalisers: dict[str, str]) -> tuple[Tensor, Tensor]:
    """(units, weights) and (units, biases) of all producers, with the BatchNorm behind a producer multiplied in."""
    weights, biases = [], []
    for part in weight_slices(model, slices):
        weight = model.get_parameter(part.tensor)
        width = weight.shape[part.dim]
        bias = getattr(model.get_submodule(part.module), "bias", None)
        bias = bias.detach() if isinstance(bias, Tensor) and bias.shape == (width,) else weight.new_zeros(width)
        scale = torch.ones_like(bias)
        norm = model.get_submodule(normalisers[part.module]) if part.module in normalisers else None
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_var is not None:
            assert norm.running_mean is not None
            scale = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
            bias = (bias - norm.running_mean) * scale + (0 if norm.bias is None else norm.bias)
        shape = [-1 if dim == part.dim else 1 for dim in range(weight.ndim)]
        weights.append(unit_rows(weight * scale.view(shape), part.dim, part.indices))
        biases.append(unit_rows(bias[:, None], 0, part.indices))
    return torch.cat(weights, 1), torch.cat(biases, 1)


def _merge(rows: Tensor, gone: Sequence[int]) -> Tensor:
    """(units, units) [j, i]: the factor by which the weights for unit i are added to those for unit j.

    >>> _merge(torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0]]), [1])
    tensor([[1., 3., 0.],
            [0., 0., 0.],
            [0., 0., 1.]])
    """
    remaining = [unit for unit in range(len(rows)) if unit not in set(gone)]
    products = rows @ rows.T
    norms = products.diagonal().sqrt()
    cosines = products / torch.outer(norms, norms).clamp(min=1e-300)
    merge = torch.zeros_like(products)
    merge[remaining, remaining] = 1.0
    for unit in gone:
        partner = remaining[int(cosines[unit, remaining].argmax())]
        merge[partner, unit] = cosines[unit, partner].clamp(min=0) * norms[unit] / norms[partner].clamp(min=1e-300)
    return merge


def _variance(weight: Tensor, covariance: Tensor) -> Tensor:
    """(outputs,) variance of what a layer gives, from its (units, entries, outputs, taps...) weights."""
    flat = weight.flatten(3) if weight.ndim > 3 else weight[..., None]
    return torch.einsum("ieot,ij,jeot->o", flat, covariance, flat).clamp(min=1e-30)
