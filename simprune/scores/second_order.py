"""Second-order cost: by how much does the network's output move when a channel goes and its readers are refitted?

Optimal brain surgeon (Hassibi and Stork, 1993) for structures. Removing the inputs u of a layer y = W x and refitting
the rest by least squares leaves the error W_u [(C^-1)_uu]^-1 W_u^T, where C is the covariance of the layer's inputs
(for a convolution, of its patches). How an error at y moves the output z is given by G = E[g g^T], where g is the
gradient at y of the output in a random direction, so that tr(G error), summed over positions, estimates E|dz|^2.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from simprune.batches import call, checked, eval_mode
from simprune.moments import Moments
from simprune.scores._score import Score
from simprune.structures import ChannelGroup
from simprune.surgery.least_squares import Refittable, joint_moments, patches, positions

RIDGE = 1e-3  # of the mean input variance, as in the repair


def second_order(
    model: nn.Module, calibration: Iterable, groups: Sequence[ChannelGroup], seed: int = 0
) -> dict[str, Score]:
    """Damage: expected squared change of the output when a channel goes, as a share of the output's variance.

    Greedy elimination, the refit updated after every step. One forward and one backward pass; memory and time per
    reader O((inputs x kernel)^2) and O(channels x (inputs x kernel)^2). Groups whose readers cannot be refitted
    (grouped convolutions) are scored as if their inputs were independent.
    """
    wanted = {part.module for group in groups for part in group.slices if part.side == "in"}
    modules = {name: model.get_submodule(name) for name in sorted(wanted)}
    layers = {name: layer for name, layer in modules.items() if isinstance(layer, Refittable) and _dense(layer)}
    statistics, variance = _statistics(model, calibration, layers, seed)
    return {group.name: _eliminate(group, layers, statistics, variance) for group in groups}


def _dense(layer: nn.Module) -> bool:
    return getattr(layer, "groups", 1) == 1


@dataclass
class _Reader:
    """Sums over the calibration set for one layer: inputs, and gradients of the output at the layer's output."""

    inputs: Moments | None = None
    gradients: Tensor | None = None
    samples: int = 0


def _statistics(
    model: nn.Module, calibration: Iterable, layers: Mapping[str, Refittable], seed: int
) -> tuple[dict[str, _Reader], float]:
    readers = {name: _Reader() for name in layers}
    outputs: Moments | None = None
    generator = torch.Generator().manual_seed(seed)
    handles = [layer.register_forward_hook(_watch(readers[name])) for name, layer in layers.items()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        for layer in layers.values():  # enough to make the graph reach every watched layer
            layer.weight.requires_grad_(True)
        with eval_mode(model), torch.enable_grad():
            for batch in checked(calibration, "calibration"):
                output = call(model, batch)
                rows = output.flatten(0, -2)
                direction = (2 * torch.randint(2, rows.shape, generator=generator) - 1).to(rows)  # +1 or -1
                torch.autograd.backward((rows * direction).sum(), inputs=[layer.weight for layer in layers.values()])
                found = Moments.of(rows.detach())
                outputs = found if outputs is None else outputs.merge(found)
                for layer in layers.values():
                    layer.weight.grad = None
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for handle in handles:
            handle.remove()
    assert outputs is not None
    return readers, float(outputs.covariance.diagonal().sum())


def _watch(reader: _Reader):
    def see(layer: nn.Module, args: tuple, output: Tensor) -> None:
        assert isinstance(layer, Refittable)
        found = joint_moments(patches(layer, args[0].detach()))
        reader.inputs = found if reader.inputs is None else reader.inputs.merge(found)
        reader.samples += len(output)
        output.register_hook(lambda gradient: back(positions(layer, gradient)))

    def back(gradient: Tensor) -> None:
        product = (gradient @ gradient.transpose(1, 2)).sum(0, dtype=torch.float64)
        reader.gradients = product if reader.gradients is None else reader.gradients + product

    return see


def _eliminate(
    group: ChannelGroup, layers: Mapping[str, Refittable], statistics: dict[str, _Reader], variance: float
) -> Score:
    readers = []
    for part in group.slices:
        if part.side == "in" and part.module in layers and part.tensor.endswith("weight"):
            readers.append(_Surgeon(layers[part.module], statistics[part.module], part.indices, variance))
    remaining = list(range(group.size))
    order: list[int] = []
    damage, alone = torch.zeros(group.size), torch.zeros(group.size, dtype=torch.float64)
    for reader in readers:
        alone += reader.alone()
    while len(remaining) > 1:
        costs = sum(reader.costs(remaining) for reader in readers)
        assert isinstance(costs, Tensor)
        channel = remaining.pop(int(costs.argmin()))
        damage[channel] = costs.min().clamp(min=0)
        order.append(channel)
        for reader in readers:
            reader.remove(channel)
    damage[remaining[0]] = alone[remaining[0]]
    lost = torch.where(alone > 0, damage / alone.clamp(min=1e-300), 0).clamp(0, 1)
    return Score((*order, remaining[0]), tuple((1 - lost).tolist()), tuple(damage.tolist()))


class _Surgeon:
    """One reader of a group: its weights and inverse covariance as inputs go one after another."""

    def __init__(
        self, layer: nn.Module, reader: _Reader, indices: tuple[tuple[int, ...], ...], variance: float
    ) -> None:
        assert reader.inputs is not None
        assert reader.gradients is not None
        assert isinstance(layer, Refittable)
        kernel = layer.weight[0, 0].numel() if layer.weight.ndim > 2 else 1
        self.columns = [
            torch.tensor([entry * kernel + tap for entry in entries for tap in range(kernel)]) for entries in indices
        ]
        self.covariance = reader.inputs.covariance.cpu()
        size = len(self.covariance)
        damping = RIDGE * self.covariance.diagonal().mean() + 1e-12
        self.inverse = torch.linalg.inv(self.covariance + damping * torch.eye(size, dtype=torch.float64))
        # tr(G W ... W^T) = |F W ...|^2 with F^T F = G: fold the metric into the weights
        metric = reader.gradients.cpu() / (reader.samples * variance)
        values, vectors = torch.linalg.eigh(metric)
        root = (vectors * values.clamp(min=0).sqrt()).T
        self.weight = root @ layer.weight.detach().flatten(1).double().cpu()

    def alone(self) -> Tensor:
        """What each channel contributes, were nothing refitted."""
        return torch.stack(
            [
                torch.einsum(
                    "oi,ij,oj->", self.weight[:, columns], self.covariance[columns][:, columns], self.weight[:, columns]
                )
                for columns in self.columns
            ]
        )

    def costs(self, channels: Sequence[int]) -> Tensor:
        """Error left by the removal of each channel with the rest refitted."""
        columns = torch.stack([self.columns[channel] for channel in channels])  # (channels, k)
        blocks = self.inverse[columns[:, :, None], columns[:, None, :]]
        weights = self.weight[:, columns].permute(1, 2, 0)  # (channels, k, outputs)
        return (weights * torch.linalg.solve(blocks, weights)).sum((1, 2))

    def remove(self, channel: int) -> None:
        """Take the channel's inputs out and refit what is left."""
        columns = self.columns[channel]
        half = torch.linalg.solve(self.inverse[columns][:, columns], self.inverse[columns])  # (k, inputs)
        self.weight = self.weight - self.weight[:, columns] @ half
        self.inverse = self.inverse - self.inverse[:, columns] @ half
