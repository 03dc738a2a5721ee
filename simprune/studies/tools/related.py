"""Data sets whose relation to another is known: shared classes, permuted pixels, noise."""

import numpy as np
import torch
from torch import Tensor


def classes_sharing(classes: int, size: int, shared: int, seed: int = 0) -> tuple[list[int], list[int]]:
    """Two sets of classes that have a number of classes in common.

    Args:
        classes: number of classes to choose from.
        size: classes of either set.
        shared: classes that both sets have.
        seed: of the choice. The first set and the order in which classes are shared depend on nothing else, so that
            sets with more shared classes contain those that sets with fewer share.

    Raises:
        ValueError: where there are too few classes.

    >>> first, second = classes_sharing(10, size=5, shared=2)
    >>> len(set(first) & set(second))
    2
    """
    if not 0 <= shared <= size or 2 * size - shared > classes:
        raise ValueError(f"two sets of {size} classes with {shared} in common do not fit into {classes} classes")
    order = np.random.default_rng(seed).permutation(classes).tolist()
    first, others = order[:size], order[size:]
    return first, [*first[:shared], *others[: size - shared]]


def permuted_pixels(images: Tensor, share: float, seed: int = 0) -> Tensor:
    """Images (N, C, H, W) with a share of the positions permuted, in the same way in every image and channel.

    Of two shares, the positions of the smaller are among those of the larger.

    >>> images = torch.arange(16.0).reshape(1, 1, 4, 4)
    >>> int((permuted_pixels(images, 0.5) != images).sum()) <= 8
    True
    """
    flat = images.flatten(2)
    rng = np.random.default_rng(seed)
    positions = torch.from_numpy(rng.permutation(flat.shape[2])[: round(share * flat.shape[2])])
    result = flat.clone()
    result[:, :, positions] = flat[:, :, positions.roll(1)]  # one cycle: no position keeps its pixel
    return result.reshape(images.shape)


def noisy(images: Tensor, level: float, seed: int = 0) -> Tensor:
    """Images with Gaussian noise, whose standard deviation is `level` times that of all pixels."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return images + level * images.std() * noise
