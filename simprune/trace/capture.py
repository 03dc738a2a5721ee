"""Run the model once; hooks at named sites feed rows or moments."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from simprune.core.batches import call, checked, first_tensor, labels_of, mask_of
from simprune.core.moments import Moments
from simprune.core.names import did_you_mean
from simprune.core.rows import Rows
from simprune.measures import Streaming
from simprune.trace.context import evaluation
from simprune.trace.hooks import hooks

Layout = Literal["flatten", "pool", "positions"]


@dataclass(frozen=True)
class Site:
    """A place where a representation is read, and how it becomes rows.

    `layout` says what a row is, for maps (N, C, H, W) and tokens (N, T, D) alike:
    "flatten": one row per input, everything in it; "pool": one row per input, the mean over positions;
    "positions": one row per input and position. (N, D) is the same under all three.
    `mask` (N, T), true for tokens: padding has no part in the mean and no rows ("flatten" keeps it). Whoever walks
    batches sets it to their attention_mask.

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
        return self.module if self.side == "output" else f"{self.module}:input"

    def rows(self, value: Tensor) -> Tensor:
        """(rows, width) of one batch's activation."""
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


@contextmanager
def watching(model: nn.Module, sites: Iterable[Site], see: Callable[[Site, Tensor], Any]) -> Iterator[None]:
    """Call `see(site, activation)` whenever a site's module runs; the hooks go away, also after an error."""
    sites = list(sites)
    modules = modules_at(model, sites)
    before = [(m, _hook(site, see)) for m, site in zip(modules, sites, strict=True) if site.side == "input"]
    after = [(m, _hook(site, see)) for m, site in zip(modules, sites, strict=True) if site.side == "output"]
    with hooks(before, after):
        yield


def modules_at(model: nn.Module, sites: Iterable[Site]) -> list[nn.Module]:
    """The modules of sites; KeyError, with what was probably meant, for a name that the model does not have."""
    modules = dict(model.named_modules())
    for site in sites:
        if site.module not in modules:
            raise KeyError(f"no module named {site.module!r}; {did_you_mean(site.module, modules)}")
    return [modules[site.module] for site in sites]


def _hook(site: Site, see: Callable[[Site, Tensor], Any]) -> Callable[..., None]:
    def tell(module: nn.Module, args: tuple, kwargs: dict, output: Any = None) -> None:
        value = first_tensor(output if site.side == "output" else (*args, *kwargs.values()))
        if value is None:
            raise ValueError(f"{site.name}: no tensor to read")
        if isinstance(module, nn.Linear) and value.ndim > 3:
            value = value.flatten(1, -2)  # channels last, so tokens and no map
        see(site, value)

    return tell


class Reading(Protocol):
    """Something that reads activations at sites while batches run, such as moments that are summed up."""

    @property
    def sites(self) -> Sequence[Site]:
        """Where it reads."""
        ...

    def see(self, site: Site, value: Tensor) -> None:
        """Take one batch's activation at one of the sites; the site knows the batch's mask."""
        ...


@contextmanager
def reading(
    model: nn.Module, readings: Iterable[Reading], mask: Callable[[], Tensor | None] = lambda: None
) -> Iterator[None]:
    """For a while several readings see whatever runs; `mask` gives the mask of the batch that is running."""
    with ExitStack() as stack:
        for each in readings:
            see = each.see
            stack.enter_context(
                watching(model, each.sites, lambda site, value, see=see: see(replace(site, mask=mask()), value))
            )
        yield


def read(model: nn.Module, batches: Iterable, readings: Iterable[Reading]) -> None:
    """Walk the batches once for several readings."""
    mask: Tensor | None = None
    with evaluation(model), reading(model, readings, lambda: mask):
        for batch in checked(batches, "calibration"):
            mask = mask_of(batch)
            call(model, batch)


def run(model: nn.Module, batches: Iterable, sites: Iterable[Site], see: Callable[[Site, Tensor], Any]) -> None:
    """Walk the batches once in evaluation mode and show every activation to `see`, at a site that knows the mask."""
    mask: Tensor | None = None
    with evaluation(model), watching(model, sites, lambda site, value: see(replace(site, mask=mask), value)):
        for batch in checked(batches, "calibration"):
            mask = mask_of(batch)
            call(model, batch)


def capture(model: nn.Module, batches: Iterable, sites: Iterable[Site]) -> dict[str, Tensor]:
    """Rows of every site for a fixed probe set: name -> (N, D), on the CPU, in the order of the batches.

    Memory grows with N x D; for data of any size use `accumulate`. Raises KeyError for an unknown module and
    ValueError when there are no batches. Costs one forward pass.

    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    >>> capture(model, [torch.randn(5, 4)], [Site("0")])["0"].shape
    torch.Size([5, 3])
    """
    sites = list(sites)
    parts = {site.name: Rows() for site in sites}
    run(model, batches, sites, lambda site, value: parts[site.name].add(site.rows(value)))
    _require_rows(parts)
    return {name: parts.pop(name).tensor() for name in [*parts]}


def accumulate(model: nn.Module, batches: Iterable, sites: Iterable[Site]) -> dict[str, Moments]:
    """Moments of every site: name -> Moments, exact for any number of batches, memory O(D^2). One forward pass."""
    sites = list(sites)
    found: dict[str, Moments] = {}

    def see(site: Site, value: Tensor) -> None:
        moments = Moments.of(site.rows(value))
        found[site.name] = found[site.name].merge(moments) if site.name in found else moments

    run(model, batches, sites, see)
    _require_rows({site.name: [1] if site.name in found else [] for site in sites})
    return found


def stream(model: nn.Module, batches: Iterable, sites: Iterable[Site], accumulator: Streaming) -> Streaming:
    """Feed `accumulator`, whose names are those of the sites, with the rows of every batch; returns it.

    Holds the rows of one batch at a time. One forward pass. Labels, if a measure needs them, come from the batches.

    >>> from simprune import measures
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    >>> sites = [Site("0"), Site("1")]
    >>> batches = [torch.randn(5, 4, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    >>> stream(model, batches, sites, measures.streaming("cka_debiased", ["0", "1"]))
    Streaming(cka_debiased: 15 rows of 2 representations)
    """
    sites = list(sites)
    parts: dict[str, list[Tensor]] = {}
    mask: Tensor | None = None

    def see(site: Site, value: Tensor) -> None:
        rows = replace(site, mask=mask).rows(value)
        parts[site.name].append(rows.to(torch.float64, copy=True))  # a later module may work in place

    with evaluation(model), watching(model, sites, see):
        for batch in checked(batches, "calibration"):
            parts.update({site.name: [] for site in sites})
            mask = mask_of(batch)
            call(model, batch)
            _require_rows(parts)
            accumulator.update({name: torch.cat(rows) for name, rows in parts.items()}, labels_of(batch))
    _require_rows(parts or {site.name: [] for site in sites})
    return accumulator


def _require_rows(parts: Mapping[str, Sized]) -> None:
    silent = [name for name, rows in parts.items() if not rows]
    if silent:
        raise ValueError(f"nothing was read at {', '.join(silent)}: no batches were given, or the module never runs")
