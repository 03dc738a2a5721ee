"""Training must not lose what the repair has reached: inputs are held out of it, and the best epoch on them is kept.

Which inputs are held out follows from their content, so that a loader may shuffle them and a walk may be repeated.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core.batches import call_all, inputs_of, output_mask_of, rows_at, tensors_in
from simprune.core.pieces import pieces
from simprune.trace.context import eval_mode

SHARE = 8  # one input in about this many is held out
MOST = 512  # inputs on which an epoch is judged
LEAST = 16  # with fewer held-out inputs training is judged on what it has seen


def split(batch: Any) -> tuple[Any | None, Any | None]:
    """The part of a batch to train on, and the part that is held out; None for a part without inputs.

    Of a batch with more inputs than one no single input is left to train on, which BatchNorm could not bear.

    >>> rest, held = split((torch.arange(64.0)[:, None], torch.arange(64)))
    >>> len(rest[1]) + len(held[1]), len(held[1])
    (64, 8)
    """
    single = list(pieces(batch, 1))
    marks = torch.tensor([_is_held(piece) for piece in single])
    if not marks.any():
        return batch, None
    if marks.all() or len(single) == 1:
        return None, batch
    rest = None if len(single) - int(marks.sum()) < 2 else rows_at(batch, ~marks)
    return rest, rows_at(batch, marks)


def _is_held(piece: Any) -> bool:
    digest = hashlib.blake2b(digest_size=4)
    for tensor in tensors_in(inputs_of(piece)):
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return int.from_bytes(digest.digest(), "little") % SHARE == 0


class Held:
    """Inputs that training does not see, and what a model's answers to them are worth.

    Where fewer than `LEAST` inputs can be held out, all are trained on, and models are judged on these. Where there is
    a validation split, all of `train` is trained on. `count`: batches to train on.
    """

    def __init__(self, train: Iterable, validation: Iterable | None = None) -> None:
        if validation is not None:
            self.apart, self.batches, self.count = False, validation, sum(1 for _ in train)
            return
        held: list[Any] = []
        seen: list[Any] = []
        count = walked = whole = partly = 0
        for batch in train:
            whole += 1
            if walked < MOST:
                seen.append(batch)
                walked += sum(1 for _ in pieces(batch, 1))
            rest, part = split(batch) if count < MOST else (batch, None)
            partly += rest is not None
            if part is not None:
                held.append(part)
                count += sum(1 for _ in pieces(part, 1))
        self.apart = count >= LEAST
        self.count = partly if self.apart else whole
        self.batches = held if self.apart else seen

    def training(self, train: Iterable) -> Iterator[Any]:
        """The batches without what is held out."""
        for batch in train:
            rest = split(batch)[0] if self.apart else batch
            if rest is not None:
                yield rest

    def loss(self, small: nn.Module, objective: Any) -> float:
        """The mean loss of a model on the inputs, as an objective of training defines it."""
        with eval_mode(small), torch.no_grad():
            batches = list(self.batches)
            own = [objective.weights(batch) for batch in batches]
            totals = {name: sum(weights[name] for weights in own) for name in own[0]}
            return sum(float(objective.loss(small, batch, totals)) for batch in batches)

    def value(self, small: nn.Module, teacher: nn.Module) -> float:
        """Squared distance of a model's outputs from the teacher's, as a share of these outputs' squares."""
        apart: dict[str, Tensor] = {}
        whole: dict[str, Tensor] = {}
        with eval_mode(small, teacher), torch.no_grad():
            for batch in self.batches:
                mask = output_mask_of(batch)
                wanted = call_all(teacher, batch)
                for name, value in call_all(small, batch).items():
                    target = wanted[name].to(value.device)
                    if mask is not None and value.ndim == 3 and mask.shape == value.shape[:2]:
                        real = mask.to(value.device)
                        value, target = value[real], target[real]
                    apart[name] = apart.get(name, 0) + (value.double() - target.double()).square().sum()
                    whole[name] = whole.get(name, 0) + target.double().square().sum()
        if not apart:
            raise ValueError("train has no batches; give at least one")
        shares = [float(apart[name] / whole[name].clamp(min=1e-300)) for name in apart]
        return sum(shares) / len(shares)
