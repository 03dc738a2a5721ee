"""Folding the fitted maps that stand in for blocks into neighbouring layers, so that no extra layer is left.

A map x -> A x + b can be folded into the layer that reads its output, W' = W A and bias' = bias + W b, also where mean
pooling or flattening lies between, which commute with a map over channels. Or it can be folded into the layer that
produces its input, W' = A W. The neighbour may be another stand-in. A trial with a random map proves every fold.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core.batches import checked, device_of, move, tensors_in
from simprune.core.copies import copy_of
from simprune.core.cost import Example
from simprune.core.example import example_of, from_description
from simprune.core.plan import Plan
from simprune.edit.compact import compact_again, restored
from simprune.edit.configuration import restate
from simprune.edit.stand_ins import Mapped
from simprune.trace.context import eval_mode, uncached
from simprune.trace.execution import execution
from simprune.trace.layers import Convolution, can_be_fitted, matrix_of, weight_of
from simprune.trace.visits import visit

TOLERANCE = 1e-5  # share of the largest output; some networks compute in float32 whatever their weights are
NEEDED = 1e-2  # share of the largest output by which a random map must change the output, or nothing is proven
READERS = "no single linear layer reads it, or it pads with zeros, or something nonlinear lies between"
CONSTANT = "the layer next to it has no place for a constant"


@dataclass(frozen=True)
class Absorbed:
    """The result for one stand-in: the layer into which its map was folded, or the reason why it stays."""

    block: str
    replace: str
    folded_into: str | None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def absorb(small: nn.Module, plan: Plan, calibration: Iterable) -> list[Absorbed]:
    """Fold the "linear" and "mean" stand-ins of a network into their neighbours where the outputs stay what they are.

    In place, after all repair and training: later repairs leave a folded stand-in alone. A fold is first proven on a
    copy in float64 with a random map instead of the fitted one, on calibration inputs and on noise: all outputs must
    be equal to 1e-5 of the largest, and the map must matter. Exact in evaluation mode; a BatchNorm before a stand-in
    is merged as if its channels were uncorrelated, which shows when it is trained on.

    Args:
        small: the edited and repaired network.
        plan: the plan that it was edited by.
        calibration: batches, of which the first is used.

    Returns:
        One entry per stand-in.

    >>> from simprune.core.example import describe
    >>> from simprune.core.plan import Edit
    >>> from simprune.edit.apply import apply
    >>> from simprune.trace.network import Network
    >>> from simprune.zoo.residual import ResidualCNN
    >>> x = torch.randn(4, 3, 8, 8)
    >>> network = Network.trace(ResidualCNN(widths=(8, 16), depths=(2, 2)).eval(), x)
    >>> plan = Plan((Edit("block", "layer2.1", replace="linear"),), network.fingerprint, describe(network.example))
    >>> [entry.folded_into for entry in absorb(apply(plan, network), plan, [x])]
    ['linear']
    """
    with restored(small):
        names = [edit.name for edit in plan.whole if isinstance(small.get_submodule(edit.name), Mapped)]
    if not names:
        return []
    trial = copy_of(small).double()
    batch = next(iter(checked(calibration, "calibration")))
    examples = [_double(move(x, device_of(small))) for x in (example_of(batch), from_description(plan.inputs))]
    results = []
    with restored(small), restored(trial), uncached(trial), eval_mode(trial):
        modules = dict(trial.named_modules())
        visits = visit(trial, examples[0])
        order = [name for name, visited in visits.items() if visited.calls == 1 and _takes(modules, name)]
        normalisers = execution(trial, examples[0]).normalisers
        for name in sorted(names, key=lambda name: order.index(name) if name in order else -1):
            into, reason = None, "it runs more than once"
            if name in order:
                into, reason = _first_proven(trial, name, order, normalisers, examples)
            if into is not None:
                _fold(small, name, into, order.index(into) > order.index(name), normalisers)
                for net in (small, trial):
                    _stand_in(net, name).empty(into)
                order.remove(name)
            replace = "mean" if _stand_in(small, name).constant else "linear"
            results.append(Absorbed(name, replace, into, reason))
    if any(entry.folded_into for entry in results):
        compact_again(small)
        restate(small, move(example_of(batch), device_of(small)))
    return results


def notes_of(results: Sequence[Absorbed]) -> list[str]:
    """Results of `absorb` in words: a line for every layer that absorbed something, and for every reason to stay.

    >>> notes_of([Absorbed("layer1.0", "linear", None, "its reason"), Absorbed("layer2.0", "linear", "fc")])
    ['the linear map in place of layer1.0 stays: its reason', 'the linear map in place of layer2.0 is folded into fc']
    """
    what = {"linear": "the linear map in place of", "mean": "the constant in place of"}
    blocks: dict[tuple[str, str], list[str]] = {}
    for entry in results:
        end = f"is folded into {entry.folded_into}" if entry.folded_into else f"stays: {entry.reason}"
        blocks.setdefault((what[entry.replace], end), []).append(entry.block)
    return [f"{start} {', '.join(names)} {end}" for (start, end), names in blocks.items()]


def absorbed(model: nn.Module) -> dict[str, str]:
    """Stand-ins whose map was folded, and into which layer; by the original's names."""
    with restored(model):
        return {
            name: module.folded_into
            for name, module in model.named_modules()
            if isinstance(module, Mapped) and module.folded_into
        }


def empty(model: nn.Module, folded: Mapping[str, str]) -> None:
    """Delete the maps that another network from the same plan has folded, before that network's weights are loaded.

    Args:
        model: a network that `apply` has built from the plan.
        folded: what `absorbed` returned for the other network.

    Raises:
        KeyError: for a name that is no stand-in.
    """
    with restored(model):
        stand_ins = {name: model.get_submodule(name) for name in folded}
    for name, module in stand_ins.items():
        if not isinstance(module, Mapped):
            raise KeyError(f"{name} is no block that a linear map or a constant stands in for")
        module.empty(folded[name])
    if folded:
        compact_again(model)
        restate(model)


def _stand_in(net: nn.Module, name: str) -> Mapped:
    module = net.get_submodule(name)
    assert isinstance(module, Mapped)
    return module


def _takes(modules: Mapping[str, nn.Module], name: str) -> bool:
    """Whether a map can be folded into a module: a stand-in, or one matrix product with a weight of its own."""
    module, around = modules[name], modules.get(name.rpartition(".")[0])
    if isinstance(module, Mapped):
        return True
    own = isinstance(getattr(module, "weight", None), nn.Parameter)
    return can_be_fitted(module) and own and not isinstance(around, Mapped)


def _first_proven(
    trial: nn.Module, name: str, order: Sequence[str], normalisers: Mapping[str, str], examples: Sequence[Example]
) -> tuple[str | None, str]:
    """The neighbour in `order`, behind or before, that can absorb a stand-in; or None, and the reason.

    Afterwards the neighbour in `trial` has absorbed a random map of the stand-in.
    """
    stand_in = _stand_in(trial, name)
    nothing = tuple(torch.zeros_like(part) for part in stand_in.affine())
    generator = torch.Generator().manual_seed(0)
    random = [torch.randn(part.shape, generator=generator, dtype=part.dtype).to(part.device) for part in nothing]
    random[0] /= len(random[0]) ** 0.5
    stand_in.set(*nothing)
    without = _outputs(trial, examples)
    stand_in.set(*random)
    targets = _outputs(trial, examples)
    if _distance(without, targets) < NEEDED:
        return None, "it hardly changes the output, so nothing can be proven"
    reasons = []
    index = order.index(name)
    for into in (*order[index + 1 : index + 2], *order[:index][-1:]):
        touched = [trial.get_submodule(changed) for changed in (into, normalisers.get(into)) if changed is not None]
        before = [copy.deepcopy(module.state_dict()) for module in touched]
        stand_in.set(*random)
        try:
            _fold(trial, name, into, order.index(into) > index, normalisers)
        except ValueError as reason:
            reasons.append(str(reason))
            continue
        stand_in.set(*nothing)
        if _distance(_outputs(trial, examples), targets) <= TOLERANCE:
            return into, ""
        reasons.append(READERS)
        for module, state in zip(touched, before, strict=True):
            module.load_state_dict(state)
    return None, next(iter(reasons), "there is no layer next to it")


def _fold(net: nn.Module, name: str, into: str, behind: bool, normalisers: Mapping[str, str]) -> None:
    """Multiply a stand-in's map into a neighbour, which runs behind or before it; ValueError where it cannot be."""
    stand_in, layer = _stand_in(net, name), net.get_submodule(into)
    map_, constant = stand_in.affine()
    if isinstance(layer, Mapped):
        other, offset = layer.affine()
        if len(offset) != len(constant) or (layer.constant and not stand_in.constant):
            raise ValueError(READERS)
        first, then = ((map_, constant), (other, offset)) if behind else ((other, offset), (map_, constant))
        layer.set(then[0] @ first[0] - torch.eye(len(map_)).to(map_), then[0] @ first[1] + then[1])
        return
    norm = net.get_submodule(normalisers[into]) if into in normalisers else None
    norm = norm if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None else None
    matrix, bias = matrix_of(layer).double(), getattr(layer, "bias", None)
    if behind:
        by_channel = stand_in.maps or isinstance(layer, Convolution)
        if matrix.shape[1] % len(map_):
            raise ValueError(READERS)
        parts = matrix.unflatten(1, (len(map_), -1) if by_channel else (-1, len(map_)))
        parts = parts if by_channel else parts.transpose(1, 2)  # (outputs, channels, positions or taps)
        mixed = torch.einsum("ocp,cd->odp", parts, map_)
        shift = torch.einsum("ocp,c->o", parts, constant)
        matrix = (mixed if by_channel else mixed.transpose(1, 2)).flatten(1)
        if bias is not None:
            bias.add_(shift)
        elif norm is not None:
            norm.get_buffer("running_mean").sub_(shift)
        elif constant.any():
            raise ValueError(CONSTANT)
    else:
        if len(matrix) != len(map_):
            raise ValueError("the layer before it makes something else")
        matrix, constant = _before(layer, matrix, norm, map_, constant)
        if bias is not None:
            bias.copy_(constant)
        elif constant.any():
            raise ValueError(CONSTANT)
    layer.get_parameter("weight").copy_(weight_of(layer, matrix))


def _before(
    layer: nn.Module, matrix: Tensor, norm: nn.modules.batchnorm._BatchNorm | None, map_: Tensor, constant: Tensor
) -> tuple[Tensor, Tensor]:
    """New weight and bias of the layer that produces a stand-in's input; changes a BatchNorm between them."""
    bias = getattr(layer, "bias", None)
    bias = torch.zeros_like(constant) if bias is None else bias.double()
    if norm is None:
        return map_ @ matrix, map_ @ bias + constant
    if norm.weight is None:
        raise ValueError(CONSTANT)
    mean, variance = norm.get_buffer("running_mean").double(), norm.get_buffer("running_var").double()
    scaled = map_ * (norm.weight.double() / (variance + norm.eps).sqrt())  # from the layer's output to the stand-in's
    norm.bias.copy_(map_ @ norm.bias.double() + constant)
    norm.get_buffer("running_mean").copy_(scaled @ mean)
    norm.get_buffer("running_var").copy_(scaled.square() @ variance)
    norm.weight.copy_((norm.get_buffer("running_var").double() + norm.eps).sqrt())
    return scaled @ matrix, scaled @ bias


def _double(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _double(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(_double(item) for item in value)
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _outputs(net: nn.Module, examples: Sequence[Example]) -> list[Tensor]:
    return [tensor.clone() for args, kwargs in examples for tensor in tensors_in(net(*args, **kwargs))]


def _distance(outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> float:
    """Largest difference of any output, as a share of the largest entry of that output."""
    return max(
        float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-30))
        for a, b in zip(outputs, targets, strict=True)
        if b.numel()
    )
