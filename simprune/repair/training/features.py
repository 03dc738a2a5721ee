"""A loss between intermediate features: the blocks that small and teacher both have are to give similar outputs.

Widths may differ, so features are compared by linear CKA (`simprune.measures`, "cka"), here with gradients.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core.batches import first_tensor, output_mask_of
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

    Raises:
        ValueError: where no block is in both.
    """

    def __init__(self, small: nn.Module, teacher: nn.Module) -> None:
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
        """1 - CKA, mean over the blocks, of what both models gave for the batch last."""
        mask = output_mask_of(batch)
        apart: list[Tensor] = []
        for name in self.names:
            own, theirs = self.outputs.pop(("small", name)), self.outputs.pop(("teacher", name))
            apart.append(1 - cka(_rows(own, mask), _rows(theirs.to(own.device), mask)))
        self.outputs.clear()
        return torch.stack(apart).mean()


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


def cka(X: Tensor, Y: Tensor) -> Tensor:
    """Linear CKA of rows (N, D) and (N, D'), with gradients; 1 where one of them is the same for all inputs.

    >>> X = torch.eye(4)[:, :2]
    >>> round(float(cka(X, X[:, :1])), 4)
    0.7454
    """
    X, Y = (rows.float() - rows.float().mean(0) for rows in (X, Y))
    if len(X) < X.shape[1] + Y.shape[1]:
        K, L = X @ X.T, Y @ Y.T
        inner, sizes = (K * L).sum(), (torch.linalg.vector_norm(K), torch.linalg.vector_norm(L))
    else:
        inner = (X.T @ Y).square().sum()
        sizes = torch.linalg.vector_norm(X.T @ X), torch.linalg.vector_norm(Y.T @ Y)
    size = sizes[0] * sizes[1]
    return inner / size if size > 0 else inner + 1
