"""First-order Taylor expansion: by how much does the loss change when a channel's weights are set to zero?

Molchanov et al., 2019: (sum of weight x gradient over the channel's weights)^2, mean over batches.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from simprune.core.batches import call_all, checked, main_name, output_mask_of
from simprune.core.labels import labels_by_output, labels_of
from simprune.core.registry import register
from simprune.core.structures import UnitGroup
from simprune.scores.channels._score import ChannelScore, by_damage
from simprune.trace.caches import forgetting
from simprune.trace.context import eval_mode, requiring
from simprune.trace.gradients import soft_log_likelihood
from simprune.trace.network import Network
from simprune.trace.units import unit_rows, weight_slices


@register("score", "taylor", source="arXiv:1906.10771")
def taylor(network: Network, calibration: Iterable, groups: Sequence[UnitGroup]) -> dict[str, ChannelScore]:
    """Damage: squared first-order change of the loss when the weights that produce a channel are set to zero.

    The loss is cross-entropy where batches have class labels for logits (N, C), else the soft log-likelihood of
    `simprune.trace.gradients`, which needs no labels; of several outputs the sum, with labels for the main one, or for
    those that have their own. One forward and one backward pass; memory O(weights). The size of batches matters, since
    the gradient is the mean over a batch and is squared then. Parameters, `requires_grad`, `.grad` and the mode are
    afterwards as before.
    """
    model = network.model
    slices = {group.name: weight_slices(model, group.slices) for group in groups}
    weights = {part.tensor: model.get_parameter(part.tensor) for parts in slices.values() for part in parts}
    damage = {group.name: torch.zeros(group.size, dtype=torch.float64) for group in groups}
    count = 0
    with eval_mode(model), torch.enable_grad(), requiring(model, *weights.values()):
        for batch in checked(calibration, "calibration"):
            with forgetting(model):
                outputs, mask = call_all(model, batch), output_mask_of(batch)
            named = labels_by_output(batch)
            loss = _loss(outputs.pop(main_name(outputs)), labels_of(batch), mask)
            for name, other in outputs.items():
                loss = loss + _loss(other, named.get(name), mask)
            gradients = torch.autograd.grad(loss, [*weights.values()], materialize_grads=True)
            products = {
                name: weight.detach() * gradient
                for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
            }
            for group, parts in slices.items():
                rows = [unit_rows(products[part.tensor], part.dim, part.indices).sum(1) for part in parts]
                damage[group] += torch.stack(rows).sum(0).square()
            count += 1
    if not count:
        raise ValueError("calibration has no batches; give at least one")
    return {name: by_damage(total / count) for name, total in damage.items()}


def _loss(output: Tensor, labels: Tensor | None, mask: Tensor | None) -> Tensor:
    if labels is not None and output.ndim == 2 and labels.ndim == 1 and not labels.is_floating_point():
        return F.cross_entropy(output, labels.to(output.device))
    if mask is not None and mask.shape == output.shape[:-1]:  # of tokens, without padding
        return -soft_log_likelihood(output[mask.to(output.device)]).mean()
    return -soft_log_likelihood(output.flatten(0, -2)).mean()
