"""A loss between intermediate features: the blocks that small and teacher both have are to give similar outputs.

Widths may differ, so features are compared by a measure of similarity (`simprune.measures`) that has gradients.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core import registry
from simprune.core.batches import first_tensor, output_mask_of
from simprune.core.registry import Choice
from simprune.edit.compact import restored
from simprune.trace.bypass import Bypass
from simprune.trace.hooks import hooks


class Features:
    """The outputs of the blocks that stay of two models.

    Blocks are the entries of lists and chains of modules that hold modules themselves, such as the residual blocks of
    a ResNet or the layers of a transformer; of lists within lists those inside.

    Args:
        small: the smaller model.
        teacher: the original.
        measure: by which outputs are compared, a name or a mapping with `name` and options.

    Raises:
        ValueError: where no block is in both, and for a measure without gradients.
        KeyError: for an unknown measure.
    """

    def __init__(self, small: nn.Module, teacher: nn.Module, measure: Choice = "cka") -> None:
        self.measure = registry.bound("measure", measure)()
        rows = torch.eye(8, 4).requires_grad_()
        try:
            self.measure.with_gradients(rows, torch.eye(8, 3)).backward()
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"finetune.feature_measure: expected a measure with gradients; {error}") from None
        with restored(small):
            own = _blocks(small)
        theirs = _blocks(teacher)
        self.names = [name for name in own if name in theirs]
        if not self.names:
            raise ValueError(
                "features: expected blocks that small and teacher both have, as entries of a ModuleList or Sequential; "
                "got none; leave features out"
            )
        self.pairs = [(own[name], theirs[name]) for name in self.names]
        self.outputs: dict[tuple[str, str], Tensor] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within the block the outputs of every call are remembered, until the next call."""

        def remember(side: str, name: str) -> Any:
            def after(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
                value = first_tensor(output)
                if value is not None:
                    self.outputs[side, name] = value

            return after

        sides = [
            (module, remember(side, name))
            for name, pair in zip(self.names, self.pairs, strict=True)
            for side, module in zip(("small", "teacher"), pair, strict=True)
        ]
        with hooks(after=sides):
            yield

    def loss(self, batch: Any) -> Tensor:
        """How far apart what both models gave for the batch last is: mean over the blocks; 0 for equal features."""
        mask = output_mask_of(batch)
        apart: list[Tensor] = []
        for name in self.names:
            own, theirs = self.outputs.pop(("small", name)), self.outputs.pop(("teacher", name))
            own, theirs = _rows(own, mask), _rows(theirs.to(own.device), mask)
            with torch.autocast(own.device.type, enabled=False):
                value = self.measure.with_gradients(own, theirs)
            if bool(value.isfinite()):  # features that are the same for all inputs have no similarity
                apart.append((1 - value if self.measure.larger_is_more_similar else value).float())
        self.outputs.clear()
        return torch.stack(apart).mean() if apart else own.sum() * 0.0


def _blocks(model: nn.Module) -> dict[str, nn.Module]:
    entries = {
        f"{path}.{name}" if path else name: module
        for path, parent in model.named_modules()
        if isinstance(parent, nn.ModuleList | nn.Sequential)
        for name, module in parent.named_children()
        if next(module.children(), None) is not None and not isinstance(module, Bypass)
    }
    return {name: module for name, module in entries.items() if not any(n.startswith(f"{name}.") for n in entries)}


def _rows(value: Tensor, mask: Tensor | None) -> Tensor:
    """Features as rows: of every token that is no padding, else of every input."""
    if value.ndim == 3:
        real = mask is not None and mask.shape == value.shape[:2]
        return value[mask.to(value.device)] if mask is not None and real else value.flatten(0, 1)
    return value.flatten(1)
