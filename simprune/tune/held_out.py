"""What plans cost the output, once repaired, on inputs that nothing saw."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from simprune.core.batches import checked, device_of, inputs_of
from simprune.core.cost import Example
from simprune.core.example import from_description, rows_of
from simprune.core.plan import Method, Plan
from simprune.repair.follow import Recovery, Stages
from simprune.trace.answers import answer, relative_errors

INPUTS = 1024  # of the calibration: to compare plans takes fewer than to repair one
SHARE = 4  # one batch in so many is held out


@dataclass(frozen=True)
class HeldOut:
    """The first `INPUTS` calibration inputs: some batches to measure on, the rest to repair with by `method`."""

    model: nn.Module
    example: Example
    held: Sequence[Any]
    rest: Sequence[Any]
    wanted: Tensor
    method: Method

    @classmethod
    def of(cls, model: nn.Module, calibration: Iterable, inputs: Mapping[str, Any], method: Method) -> "HeldOut":
        """`inputs` describes an example, as a plan does. Raises ValueError for fewer than two batches."""
        batches = _first(checked(calibration, "calibration"))
        if len(batches) < 2:
            raise ValueError(
                f"to try plans, one calibration batch is held out: give two batches or more; got {len(batches)}"
            )
        some = max(1, len(batches) // SHARE)
        held, rest = batches[:some], batches[some:]
        example = from_description(inputs, device_of(model))
        return cls(model, example, held, rest, answer(model, held).logits, method)

    def error(self, plan: Plan) -> float:
        """Squared change of the output as a share of its variance. One edit and one repair."""
        return float(self.errors(plan).mean())

    def errors(self, plan: Plan) -> Tensor:
        """(outputs,) the same output by output, as shares of the mean variance."""
        stages = Stages(self.example, None, timed=False)
        small = Recovery(self.rest, method=self.method).follow(plan, self.model, stages).model
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
