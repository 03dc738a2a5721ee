"""Choosers: in which order would structures go? The plan takes the shortest beginning that meets the budget."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from simprune.names import did_you_mean
from simprune.redundancy import Redundancy


@dataclass(frozen=True)
class Step:
    """Remove a block, or one more channel of a group; `damage` is what is lost, as a share of one layer."""

    name: str
    channel: int | None
    damage: float


Chooser = Callable[..., list[Step]]


def greedy(redundancy: Redundancy, seed: int = 0) -> list[Step]:
    """Least damage per multiply-add saved first, blocks and channels in one queue."""
    total = redundancy.costs.total().macs
    queue: list[tuple[float, Step]] = []
    for entry in redundancy.blocks:
        step = Step(entry.name, None, entry.damage)
        queue.append((step.damage / max(entry.share, 1e-12), step))
    for entry in redundancy.channels:
        saved = max(1 - redundancy.costs.after(entry.group.cut([0])).macs / total, 1e-12)
        worst = 0.0  # a later channel of a group is never taken before an earlier one
        for step in _channel_steps(redundancy, entry.name, entry.order):
            worst = max(worst, step.damage / saved)
            queue.append((worst, step))
    return [step for _, step in sorted(queue, key=lambda item: item[0])]


def uniform(redundancy: Redundancy, seed: int = 0) -> list[Step]:
    """The same share of every channel group, the most redundant channels of each first; no blocks."""
    queue: list[tuple[float, Step]] = []
    for entry in redundancy.channels:
        steps = _channel_steps(redundancy, entry.name, entry.order)
        queue += [((place + 1) / entry.group.size, step) for place, step in enumerate(steps)]
    return [step for _, step in sorted(queue, key=lambda item: item[0])]


def random(redundancy: Redundancy, seed: int = 0) -> list[Step]:
    """Blocks and channels in a seeded random order: the control that every other chooser has to beat."""
    generator = np.random.default_rng(seed)
    steps = [Step(entry.name, None, entry.damage) for entry in redundancy.blocks]
    for entry in redundancy.channels:
        steps += _channel_steps(redundancy, entry.name, generator.permutation(entry.group.size).tolist())
    return [steps[place] for place in generator.permutation(len(steps))]


def _channel_steps(redundancy: Redundancy, name: str, order: tuple[int, ...] | list[int]) -> Iterator[Step]:
    """All channels of a group but the last in the given order: a layer is never emptied."""
    entry = next(entry for entry in redundancy.channels if entry.name == name)
    for channel in order[:-1]:
        yield Step(name, channel, entry.damage[channel])


CHOOSERS: dict[str, Chooser] = {"greedy": greedy, "uniform": uniform, "random": random}


def chooser(name: str) -> Chooser:
    """A chooser by name; raises KeyError that names the nearest."""
    if name not in CHOOSERS:
        raise KeyError(f"no planner named {name!r}; {did_you_mean(name, CHOOSERS)}")
    return CHOOSERS[name]
