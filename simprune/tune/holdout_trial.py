"""Plans are tried on the network: how much the repaired network's output changes on inputs held out of the repair."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from simprune.core.batches import checked, inputs_of
from simprune.core.example import rows_of
from simprune.core.plan import Method, Plan
from simprune.repair.recovery import Recovery
from simprune.trace.answers import answer, relative_errors
from simprune.trace.network import Network

INPUTS = 1024  # calibration inputs in use: comparing plans takes fewer than repairing the final one
SHARE = 4  # one batch in this many is held out


@dataclass(frozen=True)
class HoldoutTrial:
    """The first `INPUTS` calibration inputs, split.

    `held`: batches to measure on. `rest`: batches to repair with by `method`. `wanted`: (outputs, width) the original's
    outputs on `held`.
    """

    network: Network
    held: Sequence[Any]
    rest: Sequence[Any]
    wanted: Tensor
    method: Method

    @classmethod
    def of(cls, network: Network, calibration: Iterable, method: Method) -> "HoldoutTrial":
        """Split the calibration batches; ValueError for fewer than two."""
        batches, inputs = [], 0
        for batch in checked(calibration, "calibration"):
            batches.append(batch)
            inputs += rows_of(inputs_of(batch))
            if inputs >= INPUTS and len(batches) > 1:
                break
        if len(batches) < 2:
            raise ValueError(
                f"to try plans, one calibration batch is held out: give two batches or more; got {len(batches)}"
            )
        count = max(1, len(batches) // SHARE)
        held, rest = batches[:count], batches[count:]
        return cls(network, held, rest, answer(network.model, held).logits, method)

    def errors(self, plan: Plan) -> Tensor:
        """(outputs,) squared changes as shares of the mean variance of the outputs, after one edit and one repair."""
        small = Recovery(self.rest, method=self.method).follow(plan, self.network).model
        return relative_errors(answer(small, self.held).logits, self.wanted)
