"""Inputs that a training does not see, on which its epochs are judged.

Which inputs are held out follows from their numbers in the first walk (`simprune.core.holdout`). In later walks, which
may come in another order, they are recognised by their content.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from simprune.core.batches import inputs_of, rows_at, tensors_in
from simprune.core.holdout import held_out
from simprune.core.pieces import pieces

SHARE = 8  # one input in about this many is held out
MOST = 512  # inputs that are held out at most
LEAST = 16  # with fewer held-out inputs training is judged on what it has seen
Source = Literal["validation", "held out", "train"]


class Held:
    """Inputs that epochs are judged on: those of a validation split, or some of the training inputs.

    Where fewer than `LEAST` inputs can be held out, all are trained on, and epochs are judged on these.

    Args:
        train: the training batches.
        validation: batches to judge on; None: some of `train` are held out.

    Attributes:
        source: where the inputs come from.
        batches: of the inputs that epochs are judged on.
        count: the number of batches to train on.
        met: how many inputs the last walk of `training` has left out.

    Raises:
        ValueError: for no batches.
    """

    def __init__(self, train: Iterable, validation: Iterable | None = None) -> None:
        self.keys: frozenset[bytes] = frozenset()
        self.source: Source = "validation"
        self.met = 0
        if validation is not None:
            self.batches, self.count = validation, sum(1 for _ in train)
        else:
            self._hold_out(train)
        if not self.count:
            raise ValueError("train has no batches; give at least one")

    def _hold_out(self, train: Iterable) -> None:
        keys: set[bytes] = set()
        held, first_batches = [], []
        inputs = batches = partly = 0
        for batch in train:
            single = list(pieces(batch, 1))
            out = held_out(inputs, len(single), share=SHARE) if len(keys) < MOST else torch.zeros(len(single)).bool()
            keys |= {content(piece) for piece, is_out in zip(single, out.tolist(), strict=True) if is_out}
            if inputs < MOST:
                first_batches.append(batch)
            inputs, batches = inputs + len(single), batches + 1
            rest, part = _divided(batch, out)
            partly += rest is not None
            held += [] if part is None else [part]
        if len(keys) >= LEAST and partly:
            self.source, self.keys, self.batches, self.count = "held out", frozenset(keys), held, partly
        else:
            self.source, self.batches, self.count = "train", first_batches, batches

    def training(self, train: Iterable) -> Iterator[Any]:
        """The batches of a walk over `train` without what is held out; batches of which nothing is left are left out.

        Of a batch with more inputs than one no single input is left, which BatchNorm could not bear.
        """
        self.met = 0
        for batch in train:
            if not self.keys:
                yield batch
                continue
            out = torch.tensor([content(piece) in self.keys for piece in pieces(batch, 1)])
            self.met += int(out.sum())
            rest, _ = _divided(batch, out)
            if rest is not None:
                yield rest


def _divided(batch: Any, out: Tensor) -> tuple[Any | None, Any | None]:
    """The part of a batch to train on, and the part that is held out; None for a part without inputs."""
    if not bool(out.any()):
        return batch, None
    if bool(out.all()):
        return None, batch
    rest = rows_at(batch, ~out) if int((~out).sum()) > 1 else None
    return rest, rows_at(batch, out)


def content(piece: Any) -> bytes:
    """A digest of an input, the same in whatever batch it comes.

    >>> content((torch.ones(1, 2), torch.tensor([3]))) == content(torch.ones(1, 2)) != content(torch.zeros(1, 2))
    True
    """
    digest = hashlib.blake2b(digest_size=8)
    for tensor in tensors_in(inputs_of(piece)):
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.digest()
