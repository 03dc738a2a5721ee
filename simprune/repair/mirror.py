"""More calibration inputs at no cost: the mirror images of those that are there.

The original answers mirror images too, so that they need no labels. Where images are few, a fit to them as well holds
better on others.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from simprune.core.batches import inputs_of, rows_at, tensors_in
from simprune.core.example import rows_of
from simprune.repair._task import Task


def mirrored(batches: Iterable, dim: int) -> list[Any]:
    """Batches with the mirror image of every input behind it.

    So both are held out of a fit, or neither, from the ninth input on.

    Args:
        batches: as a repair gets them; they are not changed.
        dim: of the inputs along which they are mirrored, counted from 0, the dimension of the batch: 3 turns images
            (N, C, H, W) left to right. Inputs with fewer dimensions, and whole numbers such as tokens, stay as is.

    Raises:
        ValueError: where no input has this dimension, and for that of the batch.

    >>> mirrored([torch.tensor([[1.0, 2.0], [3.0, 4.0]])], dim=1)
    [tensor([[1., 2.],
            [2., 1.],
            [3., 4.],
            [4., 3.]])]
    """
    if dim < 1:
        raise ValueError(f"mirror: expected a dimension of the inputs behind that of the batch, from 1; got {dim}")
    twice = []
    for batch in batches:
        count = rows_of(inputs_of(batch))
        copy = rows_at(batch, torch.arange(count).repeat_interleave(2), count)
        images = [
            value
            for value in tensors_in(inputs_of(copy))
            if value.is_floating_point() and value.ndim > dim and len(value) == 2 * count
        ]
        if not images:
            most = max((value.ndim for value in tensors_in(inputs_of(batch)) if value.is_floating_point()), default=0)
            raise ValueError(f"mirror: expected a dimension of the inputs, which have {most}; got {dim}")
        for image in images:
            image[1::2] = image[1::2].flip(dim)
        twice.append(copy)
    return twice


def with_mirrored(task: Task, dim: int | None) -> Task:
    """The task with mirrored batches, or as it is for None; ValueError where no input has the dimension."""
    return task if dim is None else replace(task, batches=mirrored(task.batches, dim))
