"""What the second-order score needs, and whether that much is free: before any work for some layers, later for all."""

from collections.abc import Mapping, Sequence

from torch import nn

from simprune.core import processes, registry
from simprune.core.registry import Choice
from simprune.core.sizes import refuse_large
from simprune.scores.channels._score import levels
from simprune.trace.layers import Convolution, can_be_fitted, matrix_of

BETWEEN = (  # layers that give every channel on by itself
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid, nn.Identity,
    nn.Softplus, nn.Hardswish, nn.Dropout, nn.Dropout2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d,
)  # fmt: skip


def require_memory(layers: Mapping[str, nn.Module]) -> None:
    """Raise ValueError where the sums of these layers, and the work on the largest of them, take more than is free.

    That is for every layer 8 bytes an entry for the products of its gradients, and 2 for the losses at every level of a
    removal; for the largest also the eigenvectors of these products, and its weights some times in double precision.
    """
    lasting, work, largest = 0, 0, ""
    for name, layer in layers.items():
        outputs, inputs = matrix_of(layer).shape
        products = min(outputs, inputs) ** 2
        lasting += 8 * products + 2 * len(levels(inputs)) * outputs * inputs
        if (most := 32 * products + 24 * outputs * inputs) > work:
            work, largest = most, f"{name} ({outputs} x {inputs})"
    remedy = f"most of it for {largest}; choose score=magnitude, which needs no products, or remove blocks alone"
    refuse_large(lasting + work, "score second_order", remedy)


def refuse_wide(model: nn.Module, structures: Sequence[str], score: Choice) -> None:
    """Raise ValueError, before a model runs, where a score needs more memory than is free for layers of its chains.

    Args:
        model: of which the layers are looked at that read the channels of another one in an `nn.Sequential`. What other
            layers read shows when the model runs, and then they are looked at as well.
        structures: that are searched for.
        score: of channels.

    >>> refuse_wide(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), ["channels"], "second_order")
    """
    if "channels" not in structures or not registry.read("score", score)[0].facts.get("products", False):
        return
    reading = _chained(model)
    if processes.count() == 1:
        require_memory(reading)
    for name, layer in reading.items():  # several processes share the layers out
        require_memory({name: layer})


def _chained(model: nn.Module) -> dict[str, nn.Module]:
    """Layers that read what another layer makes, with nothing between them that mixes or copies channels."""
    reading: dict[str, nn.Module] = {}
    for prefix, module in model.named_modules():
        if type(module) is not nn.Sequential:
            continue
        made = False
        for name, layer in module.named_children():
            product = type(layer) is nn.Linear or (isinstance(layer, Convolution) and can_be_fitted(layer))
            if product and made:
                reading[f"{prefix}.{name}".lstrip(".")] = layer
            made = product or (made and type(layer) in BETWEEN)
    return reading
