"""Inputs that were changed little so that a network errs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attacked(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    size: float,
    steps: int = 1,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """Images of higher loss, none of whose pixels differs by more than `size`.

    One step is the fast gradient sign method (Goodfellow, Shlens, Szegedy 2015, arXiv:1412.6572). More steps, each of
    2.5 size / steps, are projected gradient descent (Madry et al. 2018, arXiv:1706.06083), from the images themselves.

    Args:
        model: gives logits (N, C); in evaluation mode.
        images: (N, ...) to change; they stay as they are.
        labels: (N,) true classes.
        size: largest change of a pixel.
        steps: number of gradients.
        bounds: smallest and largest value of a pixel.

    >>> model = nn.Linear(2, 2)
    >>> images = torch.rand(5, 2)
    >>> changed = attacked(model, images, torch.zeros(5, dtype=torch.int64), size=0.1)
    >>> bool(((changed - images).abs() <= 0.1 + 1e-6).all())
    True
    """
    step = size if steps == 1 else 2.5 * size / steps
    low, high = (images - size).clamp(min=bounds[0]), (images + size).clamp(max=bounds[1])
    changed = images.clone()
    with torch.enable_grad():
        for _ in range(steps):
            leaf = changed.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(leaf), labels, reduction="sum"), leaf)
            changed = torch.minimum(torch.maximum(changed + step * gradient.sign(), low), high)
    return changed


def noised(images: Tensor, size: float, seed: int, bounds: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """Images all of whose pixels are changed by `size`, up or down at random: the control of an attack of this size."""
    coins = torch.randint(0, 2, images.shape, generator=torch.Generator().manual_seed(seed))
    return (images + size * (2.0 * coins - 1.0)).clamp(*bounds)
