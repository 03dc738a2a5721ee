"""Whether a network without units computes the same as one whose readers ignore them."""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core.batches import all_tensors
from simprune.core.copies import sharing
from simprune.trace.context import eval_mode
from simprune.trace.flow import normalisations
from simprune.trace.network import Network
from simprune.trace.precision import InSingle, in_half, widened

Outputs = Mapping[str, Tensor]
OF_EFFECT = 0.01  # the two may differ by this share of the change that ignoring the units makes,
ROUNDING = 1e-5  # or by this share of the largest entry, unless a low tanh makes all effects as small as that
HEIGHTS = (1.0, 0.3, 0.1, 0.03, 0.01)  # of the tanh; the first at which the network is calm is taken
NUDGE, CALM = 1e-6, 1e-3  # a calm network changes by at most this share when its tanh are higher by that share


class Comparison:
    """Outputs of copies of one network that have lost units or ignore them, in single precision.

    A normalisation across channels makes every channel depend on all others, so that a network without a channel of
    its stream never equals one that ignores it. Outputs are compared with normalisations as they are first: that
    decides about units inside of blocks. Then tanh stands in the place of every normalisation, in all copies: it is
    bounded, so that nothing overflows, and nonlinear, so that a channel at a wrong index shows. A deep trained network
    can be chaotic with tanh, so that rounding alone changes its output wholly; a lower tanh calms it.

    Args:
        network: the original.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._originals: dict[float | None, Outputs] = {}

    def heights(self) -> Iterator[float | None]:
        """The heights of the tanh at which copies are compared; None leaves normalisations as they are."""
        yield None
        if normalisations(self._network.model):
            yield self._calm_height

    def outputs(self, copy: nn.Module, height: float | None) -> Outputs:
        """The outputs of a copy on the network's example, in evaluation mode.

        Args:
            copy: of the network; it keeps what stands in the place of its normalisations.
            height: of the tanh; None leaves normalisations as they are.
        """
        if height is not None:
            _replace_normalisations(copy, height)
        args, kwargs = widened(self._network.example)
        # Rounding of half precision would hide a wrong coupling.
        with eval_mode(copy), torch.no_grad(), InSingle() if in_half(copy) else nullcontext():
            return all_tensors(copy(*args, **kwargs))

    def same(self, without: Outputs, ignoring: Outputs, height: float | None) -> bool:
        """Whether two copies compute the same.

        Args:
            without: outputs of the copy that has lost the units.
            ignoring: outputs of the copy whose readers ignore them.
            height: at which both were made.
        """
        if height not in self._originals:
            self._originals[height] = self._original(height)
        original, rounding = self._originals[height], ROUNDING if height in (None, 1.0) else 0.0
        return all(
            _apart(without[name], ignored)
            <= max(OF_EFFECT * _apart(original[name], ignored), rounding * _largest(ignored))
            for name, ignored in ignoring.items()
        )

    @cached_property
    def _calm_height(self) -> float:
        for height in HEIGHTS[:-1]:
            outputs, nudged = self._original(height), self._original(height * (1 + NUDGE))
            if all(_apart(nudged[name], value) <= CALM * _largest(value) for name, value in outputs.items()):
                return height
        return HEIGHTS[-1]

    def _original(self, height: float | None) -> Outputs:
        model = self._network.model
        if height is None and not in_half(model):
            return self._network.outputs
        return self.outputs(sharing(model), height)


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def _largest(a: Tensor) -> float:
    return float(a.abs().max()) + 1e-6


def _replace_normalisations(model: nn.Module, height: float) -> None:
    """Put a tanh of this height in the place of every normalisation across channels, in place."""

    def entrywise(x: Tensor, *_: Any, **__: Any) -> Tensor:
        return height * torch.tanh(x)

    for module in normalisations(model):
        module.forward = entrywise
