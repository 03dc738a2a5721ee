"""What plans cost the output, once repaired, on inputs that nothing saw."""

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

INPUTS = 1024  # of the calibration: to compare plans takes fewer than to repair one
SHARE = 4  # one batch in so many is held out


@dataclass(frozen=True)
class HoldoutTrial:
    """The first `INPUTS` calibration inputs: some batches to measure on, the rest to repair with by `method`."""

    network: Network
    held: Sequence[Any]
    rest: Sequence[Any]
    wanted: Tensor
    method: Method

    @classmethod
    def of(cls, network: Network, calibration: Iterable, method: Method) -> "HoldoutTrial":
        """Raises ValueError for fewer than two batches."""
        batches = _first(checked(calibration, "calibration"))
        if len(batches) < 2:
            raise ValueError(
                f"to try plans, one calibration batch is held out: give two batches or more; got {len(batches)}"
            )
        some = max(1, len(batches) // SHARE)
        held, rest = batches[:some], batches[some:]
        return cls(network, held, rest, answer(network.model, held).logits, method)

    def error(self, plan: Plan) -> float:
        """Squared change of the output as a share of its variance. One edit and one repair."""
        return float(self.errors(plan).mean())

    def errors(self, plan: Plan) -> Tensor:
        """(outputs,) the same output by output, as shares of the mean variance."""
        small = Recovery(self.rest, method=self.method).follow(plan, self.network).model
        return relative_errors(answer(small, self.held).logits, self.wanted)


def _first(batches: Iterable) -> list:
    """Batches until there are `INPUTS` inputs, two at least."""
    found, count = [], 0
    for batch in batches:
        found.append(batch)
        count += rows_of(inputs_of(batch))
        if count >= INPUTS and len(found) > 1:
            break
    return found
