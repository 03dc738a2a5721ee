"""Some of the positions of an input, where all of them would say little more: neighbours in a map are alike."""

import torch
from torch import Tensor

LEAST = 64  # positions of an input that are read at least
GOLDEN = 0.6180339887498949  # multiples of the golden ratio, modulo 1, are spread evenly


def enough(width: int) -> int:
    """Number of positions per input that suffice for moments of rows of a width: 64 inputs give 16 times the width.

    >>> enough(16), enough(1000)
    (64, 250)
    """
    return max(LEAST, -(-width // 4))


def spaced(positions: int, most: int) -> Tensor | None:
    """Numbers of `most` positions, spread evenly, the first among them; None for all, unless there are twice as many.

    They are the same for every input, so that it does not matter in which batch an input is.

    >>> spaced(100, 64), spaced(1000, 4).tolist()
    (None, [0, 404, 559, 963])
    """
    if positions < 2 * most:
        return None
    places = torch.arange(most, dtype=torch.float64)
    return ((places + places * GOLDEN % 1) * positions / most).long()
