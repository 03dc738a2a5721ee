"""The representations before and after blocks, read in one forward pass over the calibration batches.

The points between blocks form the stream; consecutive blocks of a chain share the point between them. Of every point
rows pooled over positions are stored, for similarity measures. Of every two points of a chain the mean cosine and angle
are computed position by position, batch by batch, for block influence and windows.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simprune.core import processes
from simprune.core.batches import call, checked, device_of, first_tensor, mask_at
from simprune.core.checkpoint import Checkpoint
from simprune.core.labels import labels_of
from simprune.core.progress import progress
from simprune.core.rows import Rows
from simprune.core.structures import Block
from simprune.measures import Measure
from simprune.trace.axes import channels_last
from simprune.trace.capture import Reading, read, reading
from simprune.trace.context import evaluation, uncached
from simprune.trace.hooks import After, Before, hooks
from simprune.trace.network import Network
from simprune.trace.sites import Site

POSITIONS = 1024  # of one batch, spread over its inputs and their positions, at which cosines are computed
ENTRIES = 2**22  # positions x points x points that are compared at once: bounds the memory of deep networks
GOLDEN = 0.6180339887498949  # multiples of the golden ratio, modulo 1, are spread evenly


@dataclass(frozen=True)
class Chain:
    """Blocks that follow each other directly, and the names of the points around them."""

    blocks: tuple[Block, ...]
    points: tuple[str, ...]
    cosine: np.ndarray  # (points, points), mean over inputs and positions
    angle: np.ndarray  # (points, points), mean angle over pi, in [0, 1]

    def distances(self, n: int) -> np.ndarray:
        """(windows,) mean angles over pi across all windows of `n` consecutive blocks, by their first block.

        It is 0 where the window keeps the direction of the stream, 0.5 where input and output are orthogonal,
        and 1 where they are opposite. A chain of fewer than n blocks has no windows.
        """
        return np.diagonal(self.angle, offset=n)


@dataclass(frozen=True)
class Stream:
    """The representations before and after blocks.

    Args:
        chains: of consecutive blocks.
        rows: (inputs, width) by the name of the point, on the CPU, means over positions, in order of execution.
        labels: (inputs,); None where the batches have none.
    """

    chains: tuple[Chain, ...]
    rows: dict[str, Tensor]
    labels: Tensor | None

    @cached_property
    def ends(self) -> dict[str, tuple[str, str]]:
        """Names of the points before and after a block, by its name."""
        return {
            block.name: (chain.points[index], chain.points[index + 1])
            for chain in self.chains
            for index, block in enumerate(chain.blocks)
        }

    @property
    def blocks(self) -> list[Block]:
        return [block for chain in self.chains for block in chain.blocks]

    def labels_for(self, measure: Measure) -> Tensor | None:
        """The labels if a measure needs them and the batches have them."""
        return self.labels if measure.needs_labels else None


def observe(
    network: Network,
    calibration: Iterable,
    blocks: Sequence[Block],
    checkpoint: Checkpoint | None = None,
    beside: Sequence[Reading] = (),
) -> Stream:
    """Read the stream around blocks in one forward pass over the batches.

    Memory: inputs x width per point for the pooled rows, and one batch of at most `POSITIONS` positions per point.
    Several processes share out the batches; all of them know all rows.

    Args:
        network: the original.
        calibration: batches that can be walked more than once.
        blocks: in order of execution.
        checkpoint: where the state is saved now and then; batches that it has seen are not run again.
        beside: other readings that take part in the same walk over the batches.

    Raises:
        ValueError: when there are no batches.
    """
    chains: dict[int, list[Block]] = {}
    for block in blocks:
        chains.setdefault(block.chain, []).append(block)
    points = {number: (f"{chain[0].name}:input", *(b.name for b in chain)) for number, chain in chains.items()}
    model, labels = network.model, []
    reader = _Reader(network, chains, points)
    done = reader.resume(None if checkpoint is None else checkpoint.load("stream"))
    if done and beside:  # the other readings need a walk of their own, since some batches are not run again
        read(model, calibration, beside, network.axes)
        beside = ()
    mails = [reader.mail, *(other.mail for other in beside if other.mail is not None)]
    others = reading(model, beside, network.axes, lambda name: reader.mask(name))
    with evaluation(model), uncached(model), hooks(reader.before, reader.after), others:
        batches = progress(checked(calibration, "calibration"), "read blocks")
        labels += [labels_of(batch) for batch in islice(batches, done)]
        for some in processes.rounds(batches):
            labels += [labels_of(batch) for batch in some]
            for batch in some[processes.rank() :][:1]:
                reader.mask = partial(mask_at, batch)
                call(model, batch)
                reader.close_batch()
            for mail in mails:
                mail.deliver()
            if checkpoint is not None:
                checkpoint.save_now_and_then("stream", partial(reader.state, len(labels)))
    if not labels:
        raise ValueError("calibration has no batches; give at least one")
    if checkpoint is not None and done < len(labels):
        checkpoint.save("stream", reader.state(len(labels)))
    means = {number: sums.cpu().numpy() / reader.count[number] for number, sums in reader.sums.items()}
    integers = [label for label in labels if label is not None and label.ndim == 1]
    return Stream(
        tuple(Chain(tuple(chain), points[number], *means[number]) for number, chain in chains.items()),
        {point: reader.pooled.pop(point).tensor() for number in chains for point in points[number]},
        torch.cat(integers).cpu() if len(integers) == len(labels) else None,
    )


class _Reader:
    """Hooks that read the stream at every point.

    A block that is replaced by its input has an input and an output of its own. A block that is replaced by zero is a
    branch of a layer: the stream after it is the layer's input plus what the branches so far have added.
    """

    def __init__(self, network: Network, chains: dict[int, list[Block]], points: dict[int, tuple[str, ...]]) -> None:
        self.model, self.points, self.axes = network.model, points, network.axes
        self.pooled = {point: Rows() for names in points.values() for point in names}
        self.mail = processes.Mail(lambda _, *content: self._add(*content))
        self.rows: dict[str, Tensor] = {}  # of the batch that is running
        self.mask: Callable[[str], Tensor | None] = lambda _: None  # of the batch that is running, by module
        self.unit: dict[str, Tensor] = {}
        self.stream: Tensor | None = None
        self.sums: dict[int, Tensor] = {}  # (2, points, points): cosines and angles
        self.count: dict[int, int] = dict.fromkeys(points, 0)
        self.before: list[tuple[nn.Module, Before]] = []
        self.after: list[tuple[nn.Module, After]] = []
        layers: set[str] = set()  # that hold branches
        for number, chain in chains.items():
            for index, block in enumerate(chain):
                branch, point = block.replace == "zero", points[number][0] if index == 0 else None
                around = block.inside if branch else block.name
                if point is not None or (branch and around not in layers):
                    see = self._before(around, network.visits[around].stream_key, point, branch)
                    self.before.append((self.model.get_submodule(around), see))
                if branch:
                    layers.add(around)
                adds = self.model.get_submodule(block.adds if branch else block.name)
                self.after.append((adds, self._after(block.name, branch, block.gain)))

    def _before(self, around: str, key: int | str | None, point: str | None, branch: bool) -> Before:
        def see(_: nn.Module, args: tuple, kwargs: dict) -> None:
            value = {**dict(enumerate(args)), **kwargs}[key]
            if branch:
                self.stream = value.clone()  # later layers may work in place
            if point is not None:
                axis, batch = self.axes.of(around, "input"), self.axes.batch(around, "input")
                self._read(Site(point, mask=self.mask(point), axis=axis, batch=batch), value)

        return see

    def _after(self, point: str, branch: bool, gain: float) -> After:
        def see(_: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            value = first_tensor(output)
            assert value is not None
            if branch:
                assert self.stream is not None
                value = self.stream = self.stream + gain * value
            self._read(replace(Site(point).located(self.axes), mask=self.mask(point)), value)

        return see

    def _read(self, point: Site, value: Tensor) -> None:
        self.rows[point.module] = point.rows(value).float().to("cpu", copy=True)  # later layers may work in place
        self.unit[point.module] = F.normalize(_some_positions(point, value), dim=1)

    def close_batch(self) -> None:
        """Add this batch's rows, and cosines and angles between all points of every chain; forget its activations."""
        sums = {}
        for number, names in self.points.items():
            unit = torch.stack([self.unit[name] for name in names], 1)  # (positions, points, width)
            sums[number] = _between(unit), len(unit)
        self.mail.send("batch", self.rows, sums)
        self.unit, self.rows = {}, {}

    def _add(self, rows: dict[str, Tensor], sums: dict[int, tuple[Tensor, int]]) -> None:
        for point, values in rows.items():
            self.pooled[point].add(values)
        for number, (both, count) in sums.items():
            self.sums[number] = self.sums.get(number, 0) + both
            self.count[number] += count

    def state(self, done: int) -> dict[str, Tensor]:
        """The tensors from which `resume` goes on after `done` batches."""
        state = {f"rows/{point}": rows.tensor() for point, rows in self.pooled.items()}
        for number, (cosine, angle) in self.sums.items():
            state |= {f"cosine/{number}": cosine, f"angle/{number}": angle}
            state[f"count/{number}"] = torch.tensor(self.count[number])
        return state | {"done": torch.tensor(done)}

    def resume(self, state: dict[str, Tensor] | None) -> int:
        """Go on from a state, if there is one; returns how many batches it has seen."""
        if state is None:
            return 0
        for point, rows in self.pooled.items():
            rows.add(state[f"rows/{point}"])
        device = device_of(self.model)
        for number in self.points:
            self.sums[number] = torch.stack([state[f"cosine/{number}"], state[f"angle/{number}"]]).to(device)
            self.count[number] = int(state[f"count/{number}"])
        return int(state["done"])


def _between(unit: Tensor) -> Tensor:
    """Cosines and angles between points, summed over positions, as (2, points, points).

    Args:
        unit: (positions, points, width) of length 1.

    >>> _between(torch.eye(2, dtype=torch.float64)[None]).tolist()
    [[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.5], [0.5, 0.0]]]
    """
    points = unit.shape[1]
    sums = unit.new_zeros(2, points, points)
    for part in unit.split(max(1, ENTRIES // points**2)):
        cosine = (part @ part.mT).clamp_(-1, 1)
        sums[0] += cosine.sum(0)
        angle = cosine.arccos_().div_(torch.pi)
        angle.diagonal(dim1=1, dim2=2).zero_()
        sums[1] += angle.sum(0)
    return sums


def _some_positions(site: Site, value: Tensor) -> Tensor:
    """(positions, width) in float64: at most `POSITIONS` positions of one batch, padding left out.

    The golden ratio spreads them over the batch, so that no row or column of a map is preferred.
    """
    rows = channels_last(value, site.axis, site.batch)
    if site.mask is not None and site.mask.shape == rows.shape[:2]:
        rows = rows[site.mask.to(rows.device)][None]
    inputs, positions, _ = rows.shape
    chosen = torch.arange(inputs * positions)
    if len(chosen) > POSITIONS:
        chosen = (torch.arange(POSITIONS, dtype=torch.float64) * GOLDEN % 1 * len(chosen)).long()
    chosen = chosen.to(rows.device)
    return rows[chosen // positions, chosen % positions].double()
