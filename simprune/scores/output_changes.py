"""How far removals change the output of a network, and how the changes by several removals add up.

Let z be the output, r a vector of random signs, and g the gradient of r.z at an activation y. A small error d at y
changes r.z by s = g.d, summed over all entries of y. For errors d and e by two structures, E[s_d s_e] = E[dz_d . dz_e].
So s tells the expected squared change of the output by a structure (d = e), and how far the changes by two structures
point the same way. Errors at different positions are summed before they are squared, because they may agree, as in late
layers with small maps. The output changes many times more then than by errors that are independent between positions.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from simprune.core.moments import Moments
from simprune.core.redundancy import Interactions
from simprune.trace.axes import channels_last, like
from simprune.trace.capture import Reading
from simprune.trace.layers import joint_moments
from simprune.trace.sensitivity import backpropagate
from simprune.trace.sites import Site

RIDGE = 1e-3  # of the mean input variance of a block, as in the repair

Key = tuple[str, str]  # kind and name of a structure
Error = Callable[[Tensor, Tensor], Tensor]  # (input, output) of a module -> the loss, of the output's shape


@dataclass(frozen=True)
class OutputLoss:
    """The loss at the output of a module when a structure is removed and the layers after it are refitted.

    Args:
        module: name of the module.
        error: (input, output) of the module -> the loss, of the output's shape.
    """

    module: str
    error: Error


class BlockLosses(Reading):
    """Reads the losses at the outputs of blocks when their inputs replace them and the layers after them are refitted.

    A block adds something to its input. The part of that which is a linear map of the input, position by position, is
    not lost, because the layers after the block can compute it when they are refitted. The rest is lost. Losses follow
    from the moments of a block's input and of its output minus input; memory O(width^2) per block.
    """

    def __init__(self, blocks: Sequence[str]) -> None:
        self.blocks = blocks
        self._moments: dict[str, Moments] = {}
        self._entered: dict[str, Tensor] = {}
        self._axes: dict[str, int | None] = {}

    @property
    def sites(self) -> list[Site]:
        return [Site(name, side=side) for name in self.blocks for side in ("input", "output")]

    def see(self, site: Site, value: Tensor) -> None:
        if site.side == "input":
            self._entered[site.module] = _columns(value, site.axis).clone()  # the block may work in place
            return
        entered = self._entered.pop(site.module)
        moments = joint_moments(entered, _columns(value, site.axis) - entered)
        self._axes[site.module] = site.axis
        known = self._moments.get(site.module)
        self._moments[site.module] = moments if known is None else known.merge(moments)

    def losses(self) -> dict[str, OutputLoss]:
        """The loss at the output of every block, by the block's name."""
        return {name: _loss(name, moments, self._axes[name]) for name, moments in self._moments.items()}


def _loss(name: str, moments: Moments, axis: int | None) -> OutputLoss:
    """The loss of a block from the joint moments of its input and of its output minus input; its channels' axis."""
    covariance, mean = moments.covariance, moments.mean
    width = len(covariance) // 2
    inputs, cross = covariance[:width, :width], covariance[:width, width:]
    damping = RIDGE * inputs.diagonal().mean() + 1e-12
    ridged = inputs + damping * torch.eye(width, dtype=inputs.dtype, device=inputs.device)
    weight = torch.linalg.solve(ridged, cross).T
    constant = mean[width:] - weight @ mean[:width]

    def error(value: Tensor, output: Tensor) -> Tensor:
        x = _columns(value, axis)
        lost = _columns(output, axis) - x - weight.to(x) @ x - constant.to(x)[:, None]
        return like(lost.mT, output, axis)

    return OutputLoss(name, error)


def _columns(value: Tensor, axis: int | None) -> Tensor:
    """(inputs, width, positions) of an activation."""
    return channels_last(value, axis).mT


def output_changes(
    model: nn.Module, calibration: Iterable, losses: Mapping[Key, Sequence[OutputLoss]], seed: int = 0
) -> tuple[dict[Key, float], Interactions]:
    """Damage of every structure, and the interactions of structures.

    The damage is the expected squared change of the output, as a share of the output's variance. Two changes that would
    cancel each other count as independent, because a repair need not preserve the balance between them. One forward and
    one backward pass; memory: the outputs of all modules with losses, and one number per structure and input.

    Args:
        model: the original.
        calibration: batches that can be walked more than once.
        losses: at the outputs of modules, by the kind and name of the structure whose removal causes them. Structures
            without losses are left out.
        seed: of the random signs.

    Returns:
        Damages by kind and name, and the interactions.
    """
    losses = {key: parts for key, parts in losses.items() if parts}
    watched: dict[str, list[tuple[Key, Error]]] = {}
    for key, parts in losses.items():
        for part in parts:
            watched.setdefault(part.module, []).append((key, part.error))
    if not watched:
        return {}, Interactions({}, np.zeros((0, 0)))
    batches: dict[Key, list[Tensor]] = {key: [] for key in losses}
    pending: dict[Key, Tensor] = {}

    def see(parts: Sequence[tuple[Key, Error]], _: nn.Module, value: Tensor, output: Tensor) -> None:
        with torch.no_grad():
            errors = [(key, error(value, output.detach())) for key, error in parts]
        output.register_hook(partial(add, errors))

    def add(errors: Sequence[tuple[Key, Tensor]], gradient: Tensor) -> None:
        for key, error in errors:
            change = (gradient * error).flatten(1).sum(1, dtype=torch.float64).cpu()
            known = pending.get(key, change[:0])
            if len(known) == len(change):
                pending[key] = known + change
            else:  # another number of rows, such as windows of images in place of images: they count as independent
                pending[key] = torch.cat([known, change])

    def close() -> None:
        for key, change in pending.items():
            batches[key].append(change)
        pending.clear()

    watches = {name: partial(see, parts) for name, parts in watched.items()}
    variance, count = backpropagate(model, calibration, watches, seed, close)
    changes = {key: torch.cat(parts) if parts else torch.zeros(1) for key, parts in batches.items()}
    damage = {key: float(change.square().sum()) / (count * max(variance, 1e-300)) for key, change in changes.items()}
    return damage, Interactions({key: row for row, key in enumerate(changes)}, _correlation([*changes.values()]))


def _correlation(changes: Sequence[Tensor]) -> np.ndarray:
    """(structures, structures) cosines of the changes, at least 0; 0 where two have different numbers of rows."""
    cosines = torch.eye(len(changes), dtype=torch.float64)
    for length in {len(change) for change in changes}:
        rows = torch.tensor([row for row, change in enumerate(changes) if len(change) == length])
        unit = torch.nn.functional.normalize(torch.stack([changes[row].double() for row in rows.tolist()]), dim=1)
        cosines[rows[:, None], rows] = (unit @ unit.T).clamp(0, 1)
    return cosines.fill_diagonal_(1).numpy()
