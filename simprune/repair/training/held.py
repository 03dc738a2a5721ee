"""Inputs that a training does not see, on which its epochs are judged.

Which inputs are held out follows from their numbers in the first walk (`simprune.core.holdout`). In later walks, which
may come in another order, they are recognised by their content.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch

from simprune.core.batches import inputs_of, rows_at, tensors_in
from simprune.core.holdout import divided
from simprune.core.pieces import inputs_in, pieces

SHARE = 8  # one training input in about this many is held out
MOST = 512  # inputs that are held out at most
LEAST = 16  # with fewer held-out inputs training is judged on what it has seen
Source = Literal["validation", "held out", "train"]


class Held:
    """Inputs that epochs are judged on: those of a validation split, or some of the training inputs.

    Where fewer than `LEAST` inputs can be held out, all are trained on, and epochs are judged on these.

    Args:
        train: the training batches.
        validation: batches to judge on; None: some of `train` are held out.
        calibration: batches of which those are judged on as well that are held out of the repair; None: none are.
        first: the first batch of a walk before, by which it is seen whether walks come again the same; None: `train` is
            not digested.

    Attributes:
        source: where the inputs come from.
        batches: of the inputs that epochs are judged on.
        count: the number of batches to train on.
        digest: of all training inputs and labels; None where they are others in every walk.
        calibration: batches of held-out calibration inputs.
        met: how many inputs the last walk of `training` has left out.

    Raises:
        ValueError: for no batches.
    """

    def __init__(
        self,
        train: Iterable,
        validation: Iterable | None = None,
        calibration: Iterable | None = None,
        first: Any = None,
    ) -> None:
        self.keys: frozenset[bytes] = frozenset()
        self.source: Source = "validation"
        self.met = 0
        self.digest: str | None = None
        if validation is not None:
            self.batches, self.count = validation, sum(1 for _ in self._digested(train, first))
        else:
            self._hold_out(train, first)
        if not self.count:
            raise ValueError("train has no batches; give at least one")
        parts = divided(() if calibration is None else calibration, most=MOST)
        self.calibration = [held for _, held in parts if held is not None]

    @property
    def calibration_inputs(self) -> int:
        """How many calibration inputs are held out."""
        return sum(inputs_in(batch) or 1 for batch in self.calibration)

    def _digested(self, train: Iterable, first: Any) -> Iterator[Any]:
        """The batches of the first walk, of which the digest is taken on the way."""
        if first is None:
            yield from train
            return
        whole, again = hashlib.blake2b(digest_size=8), None
        for batch in train:
            again = content(first, labels=True) == content(batch, labels=True) if again is None else again
            whole.update(content(batch, labels=True) if again else b"")
            yield batch
        self.digest = whole.hexdigest() if again else None

    def _hold_out(self, train: Iterable, first: Any) -> None:
        held, batches, partly = list[Any](), 0, 0
        for rest, part in divided(self._digested(train, first), SHARE, MOST):
            held += [] if part is None else [part]
            batches, partly = batches + 1, partly + (part is None or (rest is not None and inputs_in(rest) != 1))
        keys = frozenset(content(piece) for batch in held for piece in pieces(batch, 1))
        if len(keys) >= LEAST and partly:
            self.source, self.keys, self.batches, self.count = "held out", keys, held, partly
        else:
            self.source, self.batches, self.count = "train", list(train), batches

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
            if not out.any():
                yield batch
            elif int((~out).sum()) > 1:
                yield rows_at(batch, ~out)


def content(piece: Any, labels: bool = False) -> bytes:
    """A digest of an input, the same in whatever batch it comes.

    Args:
        piece: a batch of it alone; of a larger batch the digest is that of the whole.
        labels: whether they count as well.

    >>> content((torch.ones(1, 2), torch.tensor([3]))) == content(torch.ones(1, 2)) != content(torch.zeros(1, 2))
    True
    """
    digest = hashlib.blake2b(digest_size=8)
    for tensor in tensors_in(piece if labels else inputs_of(piece)):
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.digest()
