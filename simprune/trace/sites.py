"""Sites: where a representation is read in a network, and how activations become rows."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from simprune.core.names import did_you_mean
from simprune.core.spaced import spaced
from simprune.trace.axes import Axes, channels_last
from simprune.trace.hooks import hooks

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
        axis: the dimension along which the channels lie (see `simprune.trace.axes`). Functions that walk batches set
            it. Without it, it is 1 of four dimensions or more and the last of three.
        batch: the dimension along which the inputs of the batch lie.
        most: number of positions of an input that are rows under "positions", where a large map has more and no mask
            (see `simprune.core.spaced`); None for all.

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
    axis: int | None = field(default=None, compare=False, repr=False)
    batch: int = field(default=0, compare=False, repr=False)
    most: int | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.layout not in ("flatten", "pool", "positions"):
            raise ValueError(f"layout must be flatten, pool or positions; got {self.layout!r}")
        if self.side not in ("input", "output"):
            raise ValueError(f"side must be input or output; got {self.side!r}")

    def located(self, axes: Axes) -> "Site":
        """The same site, which knows along which dimensions channels and inputs lie."""
        return replace(self, axis=axes.of(self.module, self.side), batch=axes.batch(self.module, self.side))

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
            return value.movedim(self.batch, 0).flatten(1)
        value = channels_last(value, self.axis, self.batch)
        if self.mask is not None and self.mask.shape == value.shape[:2]:
            mask = self.mask.to(value.device)
            if self.layout == "positions":
                return value[mask]
            return value.masked_fill(~mask[..., None], 0).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        if self.layout == "pool":
            return value.mean(1)
        at = None if self.most is None else spaced(value.shape[1], self.most)
        return (value if at is None else value[:, at.to(value.device)]).flatten(0, 1)


@contextmanager
def hooks_at(model: nn.Module, sites: Iterable[Site], function: Callable[..., Any]) -> Iterator[None]:
    """Within the block, a function runs whenever a module runs at whose input or output a site is.

    Args:
        model: the network.
        sites: where to read.
        function: called with the site, its module, and the module's output or (args, kwargs). What it returns
            replaces these, unless it is None.

    Raises:
        KeyError: with the closest name, for a site whose module the model does not have.
    """

    def hook(site: Site, module: nn.Module, args: tuple, kwargs: dict, *output: Any) -> Any:
        return function(site, module, output[0] if output else (args, kwargs))

    modules = dict(model.named_modules())
    by_side: dict[str, list] = {"input": [], "output": []}
    for site in sites:
        if site.module not in modules:
            raise KeyError(f"no module named {site.module!r}; {did_you_mean(site.module, modules)}")
        by_side[site.side].append((modules[site.module], partial(hook, site)))
    with hooks(by_side["input"], by_side["output"]):
        yield


def require_rows(sites: Iterable[Site], rows: Mapping[str, object]) -> None:
    """Check that every site has rows under its name.

    Args:
        sites: where rows were to be read.
        rows: by name of a site.

    Raises:
        ValueError: with the names of the sites without rows.
    """
    silent = [site.name for site in sites if not rows.get(site.name)]
    if silent:
        raise ValueError(f"nothing was read at {', '.join(silent)}: no batches were given, or the module never runs")
