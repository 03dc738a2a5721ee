"""Walking batches through a network while hooks at sites read activations.

`read` walks the batches for any reading; `capture` returns the rows, and `stream` feeds a measure with them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from simprune.core import processes
from simprune.core.batches import call, checked, device_of, first_tensor, mask_at, move
from simprune.core.example import example_of
from simprune.core.labels import labels_of
from simprune.core.rows import Rows
from simprune.measures import Streaming
from simprune.trace.axes import Axes, axes_of
from simprune.trace.context import evaluation
from simprune.trace.sites import Site, hooks_at, require_rows

See = Callable[[Site, Tensor], Any]  # (site, one batch's activation there)


class Reading(Protocol):
    """Something that reads activations at sites while batches run, such as moments that are summed up.

    `mail`: by which what it reads comes to the process that looks after it; None where every process reads all batches.
    """

    mail: processes.Mail | None = None

    @property
    def sites(self) -> Sequence[Site]:
        """Where it reads."""
        ...

    @property
    def see(self) -> See:
        """Takes one batch's activation at one of the sites; the site knows the batch's mask."""
        ...


@dataclass
class _Reading:
    """A function as a reading."""

    sites: Sequence[Site]
    see: See
    mail: processes.Mail | None = None


@contextmanager
def watching(model: nn.Module, sites: Iterable[Site], see: See) -> Iterator[None]:
    """Call `see(site, activation)` whenever a site's module runs; the hooks go away, also after an error."""

    def show(site: Site, _: nn.Module, values: Any) -> None:
        value = first_tensor(values)
        if value is None:
            raise ValueError(f"{site.name}: no tensor to read")
        see(site, value)

    with hooks_at(model, sites, show):
        yield


@contextmanager
def reading(
    model: nn.Module, readings: Iterable[Reading], axes: Axes, mask: Callable[[str], Tensor | None] = lambda _: None
) -> Iterator[None]:
    """Show activations to several readings while the block runs, at sites that know where their channels lie.

    Args:
        model: the network.
        readings: what reads.
        axes: of the network.
        mask: gives the mask of the batch that is running, by the name of a module.
    """

    def see(reader: Reading, site: Site, value: Tensor) -> None:
        reader.see(replace(site.located(axes), mask=mask(site.module)), value)

    with ExitStack() as stack:
        for reader in readings:
            stack.enter_context(watching(model, reader.sites, partial(see, reader)))
        yield


def read(model: nn.Module, batches: Iterable, readings: Iterable[Reading], axes: Axes | None = None) -> None:
    """Walk the batches once, in evaluation mode, and show every activation to the readings.

    Several processes share out the batches where all readings have mail.

    Args:
        model: the network.
        batches: the inputs.
        readings: what reads.
        axes: of the network, if they are known; otherwise one more forward pass, of two inputs, tells them.

    Raises:
        KeyError: for a site whose module the model does not have.
        ValueError: for batches that can be walked only once, and where a site has no tensor.
    """
    readings = list(readings)
    mails = [reading.mail for reading in readings if reading.mail is not None]
    shared = len(mails) == len(readings)
    for some in processes.rounds(checked(batches, "calibration")):
        if axes is None:
            axes = axes_of(model, move(example_of(some[0]), device_of(model)))
        for batch in some[processes.rank() :][:1] if shared else some:
            with evaluation(model), reading(model, readings, axes, partial(mask_at, batch)):
                call(model, batch)
        for mail in mails:
            mail.deliver()


def run(model: nn.Module, batches: Iterable, sites: Iterable[Site], see: See, axes: Axes | None = None) -> None:
    """`read` with one function: `see(site, activation)`, at a site that knows the batch's mask and its channels."""
    read(model, batches, [_Reading(list(sites), see)], axes)


def capture(model: nn.Module, batches: Iterable, sites: Iterable[Site], axes: Axes | None = None) -> dict[str, Tensor]:
    """Rows of every site on a fixed set of inputs.

    Memory grows with N x D; for data of any size use `stream`. Costs one forward pass.

    Args:
        model: the network, which runs in evaluation mode and is left as it was.
        batches: the inputs.
        sites: where to read.
        axes: as of `read`.

    Returns:
        The name of every site and its rows (N, D), on the CPU, in the order of the batches.

    Raises:
        KeyError: for a site whose module the model does not have.
        ValueError: when there are no batches, or a site's module never runs.

    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    >>> capture(model, [torch.randn(5, 4)], [Site("0")])["0"].shape
    torch.Size([5, 3])
    """
    sites = list(sites)
    rows = {site.name: Rows() for site in sites}
    run(model, batches, sites, lambda site, value: rows[site.name].add(site.rows(value)), axes)
    require_rows(sites, rows)
    return {name: rows.pop(name).tensor() for name in [*rows]}


def stream(model: nn.Module, batches: Iterable, sites: Iterable[Site], accumulator: Streaming) -> Streaming:
    """Feed `accumulator`, whose names are those of the sites, with the rows of every batch; returns it.

    Holds the rows of one batch at a time. One forward pass. Labels, if a measure needs them, come from the batches.
    Errors as of `capture`.

    >>> from simprune import measures
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    >>> sites = [Site("0"), Site("1")]
    >>> batches = [torch.randn(5, 4, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    >>> stream(model, batches, sites, measures.streaming("cka_debiased", ["0", "1"]))
    Streaming(cka_debiased: 15 rows of 2 representations)
    """
    sites = list(sites)
    rows: dict[str, list[Tensor]] = {site.name: [] for site in sites}

    def see(site: Site, value: Tensor) -> None:
        rows[site.name].append(site.rows(value).to(torch.float64, copy=True))  # a later module may work in place

    axes: Axes | None = None
    for batch in checked(batches, "calibration"):
        rows = {site.name: [] for site in sites}
        axes = axes_of(model, move(example_of(batch), device_of(model))) if axes is None else axes
        run(model, [batch], sites, see, axes)
        require_rows(sites, rows)
        accumulator.update({name: torch.cat(parts) for name, parts in rows.items()}, labels_of(batch))
    require_rows(sites, rows)
    return accumulator
