"""Sites: where a representation is read in a network, and how activations become rows."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from simprune.core.names import did_you_mean

Layout = Literal["flatten", "pool", "positions"]


@dataclass(frozen=True)
class Site:
    """The input or output of a module, read as a representation, and how its activations become rows.

    Args:
        module: name of the module.
        layout: what one row is, for maps (N, C, H, W) and tokens (N, T, D) alike. "flatten": all entries of one input;
            "pool": the mean over the positions of one input; "positions": one position of one input. Activations
            (N, D) have the same rows under all three.
        side: whether the module's input or its output is read.
        mask: (N, T) of one batch, true for tokens and false for padding, which then has no part in the mean and no
            row; "flatten" ignores it. Functions that walk batches set it to the batch's attention_mask.

    Raises:
        ValueError: for an unknown layout or side.

    >>> import torch
    >>> Site("layer1.0", layout="flatten").rows(torch.zeros(2, 3, 4, 4)).shape
    torch.Size([2, 48])
    >>> Site("layer1.0", layout="positions").rows(torch.zeros(2, 3, 4, 4)).shape
    torch.Size([32, 3])
    """

    module: str
    layout: Layout = "pool"
    side: Literal["input", "output"] = "output"
    mask: Tensor | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.layout not in ("flatten", "pool", "positions"):
            raise ValueError(f"layout must be flatten, pool or positions; got {self.layout!r}")
        if self.side not in ("input", "output"):
            raise ValueError(f"side must be input or output; got {self.side!r}")

    @property
    def name(self) -> str:
        """The module's name, with ":input" behind it where the input is read."""
        return self.module if self.side == "output" else f"{self.module}:input"

    def rows(self, value: Tensor) -> Tensor:
        """Rows (rows, width) of one batch's activation (N, ...); ValueError for fewer than two dimensions."""
        if value.ndim < 2:
            raise ValueError(
                f"{self.name}: expected an activation of at least two dimensions; got {tuple(value.shape)}"
            )
        if self.layout == "flatten" or value.ndim == 2:
            return value.flatten(1)
        if value.ndim >= 4:  # maps have channels second, tokens last
            columns = value.flatten(2)
            return columns.mean(2) if self.layout == "pool" else columns.transpose(1, 2).flatten(0, 1)
        if self.mask is not None and self.mask.shape == value.shape[:2]:
            mask = self.mask.to(value.device)
            if self.layout == "positions":
                return value[mask]
            return (value * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return value.mean(1) if self.layout == "pool" else value.flatten(0, 1)


def modules_at(model: nn.Module, sites: Iterable[Site]) -> list[nn.Module]:
    """The modules of sites, in their order; KeyError, with the closest name, for one that the model does not have."""
    modules = dict(model.named_modules())
    for site in sites:
        if site.module not in modules:
            raise KeyError(f"no module named {site.module!r}; {did_you_mean(site.module, modules)}")
    return [modules[site.module] for site in sites]


def as_tokens(module: nn.Module, activation: Tensor) -> Tensor:
    """A linear layer's activation as (N, T, D): it has channels last, also with four dimensions, where maps do not."""
    return activation.flatten(1, -2) if isinstance(module, nn.Linear) and activation.ndim > 3 else activation
