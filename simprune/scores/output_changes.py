"""How far removals change the output of a network, and how the changes by several removals add up.

Let z be the output, r a vector of random signs, and g the gradient of r.z at an activation y. A small error d at y
changes r.z by s = g.d, summed over all entries of y. For errors d and e by two structures, E[s_d s_e] = E[dz_d . dz_e].
So s tells the expected squared change of the output by a structure (d = e), and how far the changes by two structures
point the same way. Errors at different positions are summed before they are squared, because they may agree, as in late
layers with small maps. The output changes many times more then than by errors that are independent between positions.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from simprune.core import processes
from simprune.core.batches import inputs_of
from simprune.core.example import rows_of
from simprune.core.holdout import Counting, held_out
from simprune.core.moments import WIDE, gram
from simprune.core.redundancy import Interactions
from simprune.core.spaced import enough, spaced
from simprune.trace.axes import Axes, channels_last, like
from simprune.trace.capture import Reading
from simprune.trace.layers import changes_by_weights, in_full, stacked
from simprune.trace.sensitivity import Walk, Watcher, backpropagate
from simprune.trace.sites import Site

RIDGE = 1e-3  # of the mean input variance of a block, as in the repair
LARGE = 2**19  # entries of a matrix, several of which are held for every layer, from which on it is in half precision

Key = tuple[str, str, int]  # kind and name of a structure, and how many of its units are removed; 0 for a block
Error = Callable[[Tensor, Tensor], Tensor]  # (input, output) of a module -> the loss, of the output's shape


@dataclass(frozen=True)
class Weights:
    """An (outputs, inputs x kernel) matrix and (outputs,) bias; a large matrix in half precision, and scaled.

    >>> matrix, mean = torch.full((2, 3), 0.1, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    >>> Weights.of(matrix, mean, torch.ones(1)).full()[1]
    tensor([-0.3000, -0.3000])
    """

    matrix: Tensor
    bias: Tensor
    scale: float = 1.0

    @classmethod
    def of(cls, matrix: Tensor, mean: Tensor, like: Tensor, order: Tensor | None = None) -> "Weights":
        """Of a float64 matrix for a layer with weight `like`, and a bias with which inputs of a mean give 0.

        The matrix's columns are put in an order, by their numbers, once they are rounded, which is less to move.
        """
        scale, rounded = 1.0, in_full(matrix.to(like.dtype))
        if matrix.numel() >= LARGE:
            scale = float(matrix.abs().max()) or 1.0
            rounded = (matrix / scale).half()
        rounded = rounded if order is None else rounded.index_select(1, order)
        bias = -scale * (rounded.to(matrix) @ mean)
        return cls(rounded.to(like.device), in_full(bias.to(like)), scale)

    def full(self) -> tuple[Tensor, Tensor]:
        """Both in the layer's precision, of halves in single precision."""
        return self.matrix.to(self.bias) * self.scale, self.bias


@dataclass(frozen=True)
class OutputLoss:
    """The loss at the output of a module when a structure is removed and the layers after it are refitted.

    Args:
        module: name of the module.
        error: (input, output) of the module -> the loss, of the output's shape.
        weights: where the loss is that of another layer on the module's input, this layer's, in place of `error`.
        fitted: whether the loss was fitted to inputs that are not held out (`simprune.core.holdout`), so that only
            those that are say what it is.
    """

    module: str
    error: Error | None = None
    weights: Weights | None = None
    fitted: bool = False


Losses = Mapping[Key, Sequence[OutputLoss]]


class BlockLosses(Reading):
    """Reads the losses at the outputs of blocks when their inputs replace them and the layers after them are refitted.

    A block adds something to its input. The part of that which is a linear map of the input, position by position, is
    not lost, because the layers after the block can compute it when they are refitted. The rest is lost. Losses follow
    from the moments of a block's input and of its output minus input; memory O(width^2) per block. Of several processes
    each looks after some of the blocks.
    """

    def __init__(self, blocks: Sequence[str]) -> None:
        self.blocks = blocks
        owners = {name: number % processes.count() for number, name in enumerate(blocks)}
        mail = processes.Mail(self._add, owners.__getitem__)
        self.mail, self._send = mail, mail.send
        self._moments: dict[str, _Moments] = {}
        self._entered: dict[str, Tensor] = {}
        self._axes: dict[str, int | None] = {}

    @property
    def sites(self) -> list[Site]:
        return [Site(name, side=side) for name in self.blocks for side in ("input", "output")]

    def see(self, site: Site, value: Tensor) -> None:
        if site.side == "input":
            self._entered[site.module] = _tokens(site, value).clone()  # the block may work in place
            return
        entered = self._entered.pop(site.module)
        self._send(site.module, _Moments.of(entered, _tokens(site, value) - entered), site.axis)

    def _add(self, block: str, moments: "_Moments", axis: int | None) -> None:
        self._axes[block] = axis
        known = self._moments.get(block)
        self._moments[block] = moments if known is None else known.merge(moments)

    def losses(self) -> dict[str, OutputLoss]:
        """The loss at the output of every block, by the block's name; the moments are forgotten on the way."""
        own = {name: _loss(name, self._moments.pop(name), self._axes[name]) for name in [*self._moments]}
        known = {name: loss for losses in processes.gather(own) for name, loss in losses.items()}
        return {name: known[name] for name in self.blocks if name in known}


@dataclass(frozen=True)
class _Moments:
    """Count and means of inputs x and of what is added to them, and the products of x with both about their means.

    The products of what is added with itself, as large as all others together, say nothing about its fit.
    """

    count: int
    mean: Tensor
    products: Tensor  # (width, 2 x width)

    @classmethod
    def of(cls, inputs: Tensor, added: Tensor) -> "_Moments":
        """Of two tensors (N, width, positions), in their own precision; results of few channels in float64."""
        rows = stacked(in_full(inputs), in_full(added))
        mean = rows.mean(1)
        rows -= mean[:, None]
        entered, rest = rows.chunk(2)
        products = torch.cat([gram(entered), entered @ rest.T], 1)
        return cls(rows.shape[1], mean.double(), products if len(products) >= WIDE else products.double())

    def merge(self, other: "_Moments") -> "_Moments":
        count, shift = self.count + other.count, other.mean - self.mean
        products = self.products.add_(other.products)
        step = shift.to(products)
        products.addr_(step[: len(products)], step, alpha=self.count * other.count / count)
        return _Moments(count, self.mean + shift * (other.count / count), products)


def _loss(name: str, moments: _Moments, axis: int | None) -> OutputLoss:
    """The loss of a block from the moments of its input and of its output minus input; its channels' axis."""
    covariance, mean = moments.products / moments.count, moments.mean
    width = len(covariance)
    inputs, cross = covariance[:, :width], covariance[:, width:]
    damping = RIDGE * inputs.diagonal().mean() + 1e-12
    ridged = inputs + damping * torch.eye(width, dtype=inputs.dtype, device=inputs.device)
    root, failed = torch.linalg.cholesky_ex(ridged)
    root = torch.linalg.cholesky(ridged.double()) if failed else root
    weight = torch.cholesky_solve(cross.to(root), root).T.double()
    constant = (mean[width:] - weight @ mean[:width]).float()
    return OutputLoss(name, _Unexplained(weight.float(), constant, axis))  # one of every block is held


@dataclass(frozen=True)
class _Unexplained:
    """What a block adds to its input x and a linear map of x does not: output - x - weight x - constant."""

    weight: Tensor
    constant: Tensor
    axis: int | None

    def __call__(self, value: Tensor, output: Tensor) -> Tensor:
        x, y = (in_full(_columns(part, self.axis)) for part in (value, output))
        through = self.weight.to(x) + torch.eye(len(self.weight), dtype=x.dtype, device=x.device)
        explained = torch.baddbmm(self.constant.to(x)[:, None].expand_as(x), through.expand(len(x), -1, -1), x)
        return like(torch.sub(y, explained, out=explained).mT, output, self.axis)


def _columns(value: Tensor, axis: int | None) -> Tensor:
    """(inputs, width, positions) of an activation."""
    return channels_last(value, axis).mT


def _tokens(site: Site, value: Tensor) -> Tensor:
    """The columns of an activation at a site, of a large map some; without padding, (1, width, tokens)."""
    columns = _columns(value, site.axis)
    mask = site.mask
    if mask is not None and mask.shape == columns.shape[::2]:
        return columns.mT[mask.to(value.device)].T[None]
    at = spaced(columns.shape[2], enough(columns.shape[1]))
    return columns if at is None else columns[..., at.to(value.device)]


class OutputChanges(Watcher):
    """Reads how far removals change the output, input by input, while directions are propagated back.

    Memory: one number per removal and input.

    Args:
        losses: at the outputs of modules, by the removal that causes them. Removals without losses are left out.
        axes: of the model; without them the inputs of a batch lie along the first dimension everywhere.
        held: whether only inputs that are held out run.
    """

    def __init__(self, losses: Losses, axes: Axes | None = None, held: bool = False) -> None:
        modules: dict[str, list[tuple[Key, OutputLoss]]] = {}
        for key, parts in losses.items():
            for part in parts:
                modules.setdefault(part.module, []).append((key, part))
        super().__init__({name: partial(self._see, parts) for name, parts in modules.items()})
        self.changes = {key: Changes(any(part.fitted for part in parts)) for key, parts in losses.items() if parts}
        self.walk: Walk | None = None
        self._axes, self._held, self._counting = axes, held, Counting()
        self._mail = processes.Mail(lambda key, *content: self.changes[key].add(*content))

    def begin(self, batch: Any) -> None:
        self._counting.begin(rows_of(inputs_of(batch)))

    def close(self) -> None:
        self._mail.deliver()

    def end(self, walk: Walk) -> None:
        self.walk = walk

    def damages(self) -> dict[Key, float]:
        """Expected squared changes of the output, as shares of the output's variance, by removal."""
        if self.walk is None:
            return {}
        unit = self.walk.count * max(self.walk.variance, 1e-300)
        return {key: seen.squares() / unit for key, seen in self.changes.items()}

    def _see(self, parts: Sequence[tuple[Key, OutputLoss]], layer: nn.Module, value: Tensor, output: Tensor) -> None:
        output.register_hook(partial(self._add, parts, layer, value, output.detach()))

    def _add(
        self,
        parts: Sequence[tuple[Key, OutputLoss]],
        layer: nn.Module,
        value: Tensor,
        output: Tensor,
        gradient: Tensor,
    ) -> None:
        along = 0 if self._axes is None else self._axes.batch(parts[0][1].module, "output")
        value, output, gradient = (tensor.movedim(along, 0) for tensor in (value, output, gradient))
        if len(output) > len(value) and len(output) % len(value) == 0:  # all tokens of all inputs, one after another
            output, gradient = (tensor.unflatten(0, (len(value), -1)) for tensor in (output, gradient))
        counting = self._counting
        held = torch.ones(len(value), dtype=torch.bool) if self._held else counting.held_out(len(value))
        some_held = bool(held.any()) or (counting.any_held and len(value) >= counting.inputs)
        together: dict[tuple[bool, ...], list[tuple[Key, OutputLoss]]] = {}  # parts by the rows that they look at
        for key, part in parts:
            looked = held if self.changes[key].fitted and some_held else torch.ones_like(held)
            together.setdefault(tuple(looked.tolist()), []).append((key, part))
        for chosen, some in together.items():
            rows = torch.tensor(chosen)
            at = slice(None) if rows.all() else rows.to(value.device)
            for (key, _), change in zip(some, _changes(layer, some, value[at], output[at], gradient[at]), strict=True):
                self._mail.send(key, counting.first, change.cpu(), len(value), held[rows])


def output_changes(
    model: nn.Module,
    calibration: Iterable,
    losses: Losses,
    seed: int = 0,
    axes: Axes | None = None,
    weights: Mapping[str, float] | None = None,
    beside: OutputChanges | None = None,
) -> tuple[dict[Key, float], Interactions]:
    """Damage of every removal, and the interactions of structures.

    The damage is the expected squared change of the output, as a share of the output's variance. Two changes that would
    cancel each other count as independent, because a repair need not preserve the balance between them. One forward and
    one backward pass; memory: one number per removal and input.

    Args:
        model: the original.
        calibration: batches that can be walked more than once.
        losses: at the outputs of modules, by the removal that causes them. Removals without losses are left out.
        seed: of the random signs.
        axes: of the model; without them the inputs of a batch lie along the first dimension everywhere.
        weights: of outputs, by name; those that it does not name have the weight 1.
        beside: what an earlier walk over the same batches with the same seed has read, of other removals. Where all
            `losses` are fitted, only the inputs that are held out run after such a walk.

    Returns:
        Damages by removal, and the interactions by kind and name. Of several removals from one structure, that of the
        middle number of units interacts.
    """
    earlier = None if beside is None else beside.walk
    fitted = all(part.fitted for parts in losses.values() for part in parts)
    after = earlier if earlier is not None and fitted and held_out(0, earlier.inputs).any() else None
    own = OutputChanges(losses, axes, held=after is not None)
    if own.watches:
        backpropagate(model, calibration, [own], seed, weights, after)
    parts = [own] if beside is None or earlier is None else [beside, own]
    changes = {key: seen for part in parts for key, seen in part.changes.items()}
    damages = {key: damage for part in parts for key, damage in part.damages().items()}
    if not changes:
        return {}, Interactions({}, np.zeros((0, 0)))
    numbers: dict[tuple[str, str], list[int]] = {}
    for kind, name, units in changes:
        numbers.setdefault((kind, name), []).append(units)
    middle = {key: changes[*key, sorted(units)[len(units) // 2]].judged() for key, units in numbers.items()}
    return damages, Interactions({key: row for row, key in enumerate(middle)}, _correlation([*middle.values()]))


@torch.no_grad()
def _changes(
    layer: nn.Module, parts: Sequence[tuple[Key, OutputLoss]], value: Tensor, output: Tensor, gradient: Tensor
) -> list[Tensor]:
    """(rows,) changes of the output by every part, on some rows of one batch."""
    if not len(value):
        return [torch.zeros(0, dtype=torch.float64) for _ in parts]
    weights = {key: part.weights.full() for key, part in parts if part.weights is not None}
    weighted = dict(zip(weights, changes_by_weights(layer, value, gradient, [*weights.values()]), strict=True))
    changes = []
    for key, part in parts:
        if part.error is None:
            changes.append(weighted[key])
        else:
            slope, error = (tensor.float().flatten(1) for tensor in (gradient, part.error(value, output)))
            changes.append((slope[:, None] @ error[..., None])[:, 0, 0].double())
    return changes


@dataclass
class Changes:
    """Changes of the output by one removal, one per input.

    Args:
        fitted: whether only inputs that are held out say what the damage is.
        parts: (number of the batch's first input, changes, number of inputs, which of the changes are by inputs that
            are held out).
    """

    fitted: bool
    parts: list[tuple[int, Tensor, int, Tensor]] = field(default_factory=list)

    def add(self, first: int, change: Tensor, inputs: int, held: Tensor) -> None:
        """Add the change by one module in a batch, from its first input's number on."""
        for index, (begun, known, *_) in enumerate(reversed(self.parts), 1):
            if begun != first:
                break
            if len(known) == len(change):
                self.parts[-index] = (first, known + change, inputs, held)
                return
        # Another number of rows, such as windows of images in place of images: they count as independent.
        self.parts.append((first, change, inputs, held))

    def judged(self) -> Tensor:
        """Changes for the inputs that are held out, or where there are none for all."""
        judged = [change[held] for _, change, _, held in self.parts if held.any()]
        return torch.cat(judged or [change for _, change, _, _ in self.parts] or [torch.zeros(1)])

    def squares(self) -> float:
        """Sum of squares over all inputs, if need be as those that are held out tell."""
        if not self.fitted:
            return sum(float(change.square().sum()) for _, change, _, _ in self.parts)
        judged = self.judged()
        return float(judged.square().sum()) * sum(inputs for *_, inputs, _ in self.parts) / len(judged)


def _correlation(changes: Sequence[Tensor]) -> np.ndarray:
    """(structures, structures) cosines of the changes, in [0, 1]; 0 where two have different numbers of rows."""
    cosines = torch.eye(len(changes), dtype=torch.float64)
    for length in {len(change) for change in changes}:
        rows = torch.tensor([row for row, change in enumerate(changes) if len(change) == length])
        unit = torch.nn.functional.normalize(torch.stack([changes[row].double() for row in rows.tolist()]), dim=1)
        cosines[rows[:, None], rows] = _beyond_chance(unit @ unit.T, length).clamp(0, 1)
    return cosines.fill_diagonal_(1).numpy()


def _beyond_chance(cosines: Tensor, rows: int) -> Tensor:
    """Cosines of several vectors with this many rows, each drawn towards their mean as far as chance may explain it.

    Changes that have nothing to do with each other have cosines of about +-1 / sqrt(rows). As negative ones count as 0,
    the damage of fifty structures would come out as several times the sum of their damages. By empirical Bayes: the
    cosines vary by more than chance lets them, and this share of its distance from the mean is left of a cosine.
    """
    apart = ~torch.eye(len(cosines), dtype=torch.bool)
    if len(cosines) < 3:  # one pair has nothing that it could be compared with
        return cosines
    mean = cosines[apart].mean()
    chance = (1 - cosines.square()).square() / rows
    real = ((cosines - mean).square() - chance)[apart].mean().clamp(min=0)
    return mean + (cosines - mean) * real / (real + chance).clamp(min=1e-300)
