"""The damage of a model against its teacher, batch by batch, so that no answers are stored."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core.batches import call_all, output_mask_of
from simprune.core.spread import Spread
from simprune.trace.context import eval_mode
from simprune.trace.outputs import add_rows, as_rows, rows_of_outputs, shares_of


class Damage:
    """Squared changes of all outputs as shares of the variance that the teacher's have on the same inputs, weighted.

    Args:
        teacher: the original.
        batches: of these inputs; at least one.
        weights: of outputs, by name; those that it does not name have the weight 1.

    >>> teacher, batches = nn.Linear(3, 2), [torch.randn(8, 3)]
    >>> damage = Damage(teacher, batches)
    >>> damage.of(damage.squares(batches[0], call_all(nn.Linear(3, 2), batches[0]), call_all(teacher, batches[0]))) > 0
    True
    """

    def __init__(self, teacher: nn.Module, batches: Iterable, weights: Mapping[str, float] | None = None) -> None:
        self.rows = rows_of_outputs(teacher, next(iter(batches)))
        spreads: dict[str, Spread] = {}
        with eval_mode(teacher), torch.no_grad():
            for batch in batches:
                add_rows(spreads, call_all(teacher, batch), self.rows, output_mask_of(batch))
        shares = shares_of(spreads, weights)
        self.shares = shares or dict.fromkeys(spreads, 1.0)  # of outputs that never vary, squares as such

    def squares(self, batch: Any, outputs: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, float]:
        """Summed squared changes of every output at a part of the inputs, which add up to those at all of them.

        Args:
            batch: of these inputs.
            outputs: of the model.
            wanted: those of the teacher.
        """
        own, theirs = (as_rows(values, self.rows, output_mask_of(batch)) for values in (outputs, wanted))
        apart = {name: own[name].double() - theirs[name].to(own[name].device).double() for name in self.shares}
        return {name: float(value.square().sum()) for name, value in apart.items()}

    def of(self, squares: Mapping[str, float]) -> float:
        """The damage, from the summed squared changes at all inputs."""
        return sum(share * squares[name] for name, share in self.shares.items())
