"""Which calibration inputs are held out of a fit, so that it can be judged on inputs that it has not seen."""

SHARE = 4  # one input in this many is held out


def held_out(batch: int, inputs: int) -> int:
    """How many inputs of a batch, its last ones, are held out.

    They lie next to each other, so that windows of one document are rarely on both sides.

    Args:
        batch: the batch's number, from 0.
        inputs: the number of inputs in it; where there are fewer than `SHARE`, whole batches are held out instead.

    >>> held_out(0, 64), held_out(0, 1), held_out(3, 1)
    (16, 0, 1)
    """
    if inputs >= SHARE:
        return inputs // SHARE
    return inputs if batch % SHARE == SHARE - 1 else 0
