"""Other ways to prune a Llama-shaped model without training, written anew and simplified from the formulas of papers.

Every function takes the original and calibration batches, and changes neither. A choice of layers is a list of their
numbers. Each is what its paper proposes first; options that the papers add (more search, more data) are left out.
"""

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batch = dict[str, Tensor]
RIDGE = 1e-3  # of GRAIL and ReplaceMe, relative to the mean square of the inputs


class Nothing(nn.Module):
    """In the place of attention: it adds nothing to the stream."""

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        return torch.zeros_like(hidden_states), None


def layers_of(model: nn.Module) -> Any:
    return model.get_submodule("model.layers")


@contextmanager
def watching(modules: Sequence[nn.Module], side: str) -> Iterator[list[list[Tensor]]]:
    """Within the block, the inputs or outputs of modules are stored: one list per module, one entry per call."""
    seen: list[list[Tensor]] = [[] for _ in modules]

    def before(number: int) -> Callable:
        return lambda _, args, kwargs: seen[number].append(args[0] if args else kwargs["hidden_states"])

    def after(number: int) -> Callable:
        return lambda _, args, output: seen[number].append(output[0] if isinstance(output, tuple) else output)

    if side == "input":
        hooks = [m.register_forward_pre_hook(before(n), with_kwargs=True) for n, m in enumerate(modules)]
    else:
        hooks = [m.register_forward_hook(after(n)) for n, m in enumerate(modules)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def stream(model: nn.Module, batches: Sequence[Batch]) -> list[Tensor]:
    """(windows, tokens, width) before the first layer and behind every layer."""
    layers = [*layers_of(model)]
    with watching(layers[:1], "input") as first, watching(layers, "output") as behind:
        for batch in batches:
            model.get_submodule("model")(**batch)
    return [torch.cat(parts) for parts in (*first, *behind)]


# ---- which layers ----


def block_influence(model: nn.Module, batches: Sequence[Batch], count: int) -> list[int]:
    """ShortGPT (Men et al. 2024): the layers with the least 1 - mean cosine of their input and output."""
    points = stream(model, batches)
    influence = [1 - float(F.cosine_similarity(a, b, dim=-1).mean()) for a, b in itertools.pairwise(points)]
    return sorted(sorted(range(len(influence)), key=influence.__getitem__)[:count])


def window_by_angle(model: nn.Module, batches: Sequence[Batch], count: int) -> list[int]:
    """Gromov et al. 2024: the window of layers across which the last token turns by the least angle."""
    points = [point[:, -1] for point in stream(model, batches)]
    angles = [
        float(F.cosine_similarity(a, b, dim=-1).clamp(-1, 1).acos().mean())
        for a, b in zip(points, points[count:], strict=False)
    ]
    first = min(range(len(angles)), key=angles.__getitem__)
    return [*range(first, first + count)]


@torch.no_grad()
def greedy(model: nn.Module, batches: Sequence[Batch], count: int, halves: bool = False) -> list[int]:
    """Leave one out, again after every removal (as SLEB, Song et al. 2024): by the divergence of the outputs.

    `halves`: attention halves in place of layers.
    """
    small = copy.deepcopy(model)
    layers, gone = [*layers_of(small)], list[int]()
    wanted = [F.log_softmax(model(**batch).logits, -1) for batch in batches]
    for _ in range(count):
        errors = {}
        for number in range(len(layers)):
            if number not in gone:
                outputs = [_without(small, layers, [*gone, number], halves)(**batch).logits for batch in batches]
                errors[number] = sum(
                    float((w.exp() * (w - F.log_softmax(o, -1))).sum(-1).mean())
                    for w, o in zip(wanted, outputs, strict=True)
                )
        gone.append(min(errors, key=errors.__getitem__))
    return sorted(gone)


def _without(small: nn.Module, layers: Sequence[nn.Module], gone: Sequence[int], halves: bool) -> nn.Module:
    """The same module, with all of its layers but some."""
    if not halves:
        small.get_submodule("model").layers = nn.ModuleList(layer for n, layer in enumerate(layers) if n not in gone)
        return small
    shown = [copy.copy(layer) for layer in layers]
    for number in gone:
        shown[number]._modules = {**shown[number]._modules, "self_attn": Nothing()}
    small.get_submodule("model").layers = nn.ModuleList(shown)
    return small


def without(model: nn.Module, gone: Sequence[int], halves: bool = False) -> nn.Module:
    """A copy without some layers, or without their attention halves."""
    small = copy.deepcopy(model)
    return _without(small, [*layers_of(small)], gone, halves)


# ---- what stands in for layers ----


@torch.no_grad()
def linear_maps(model: nn.Module, batches: Sequence[Batch], gone: Sequence[int]) -> nn.Module:
    """ReplaceMe (Shopkhoev et al. 2025): at every gap, the MLP before it gives a linear map of what it gave.

    The map T is solved for y + T m = z: m is what the MLP gives, y what runs past it, z the stream behind the gap, all
    in the original. It is multiplied into the MLP's last layer. A gap at the start of the model gets none.
    """
    small, layers = copy.deepcopy(model), [*layers_of(model)]
    copies, points = [*layers_of(small)], stream(model, batches)
    with watching([layer.mlp for layer in layers], "output") as mlps:
        for batch in batches:
            model.get_submodule("model")(**batch)
    for start, stop in _gaps(gone):
        if start == 0:
            continue
        m = torch.cat(mlps[start - 1]).flatten(0, 1).double()
        wanted = (points[stop] - points[start]).flatten(0, 1).double() + m
        gram = m.T @ m
        gram.diagonal().add_(RIDGE * float(gram.diagonal().mean()))
        weight = copies[start - 1].mlp.down_proj.weight
        weight.copy_(torch.linalg.solve(gram, m.T @ wanted).T @ weight.double())
    return _without(small, copies, gone, False)


def _gaps(gone: Sequence[int]) -> list[tuple[int, int]]:
    """(first layer, layer behind) of every run of neighbouring layers.

    >>> _gaps([3, 4, 8])
    [(3, 5), (8, 9)]
    """
    starts = [number for number in sorted(gone) if number - 1 not in gone]
    return [(start, next(stop for stop in range(start, start + len(gone) + 1) if stop not in gone)) for start in starts]


def window_by_cosine(model: nn.Module, batches: Sequence[Batch], count: int) -> list[int]:
    """ReplaceMe's choice: the window of layers, not the first, across which all tokens turn least, by cosine."""
    points = stream(model, batches)
    cosines = [float(F.cosine_similarity(a, b, dim=-1).mean()) for a, b in zip(points, points[count:], strict=False)]
    first = max(range(1, len(cosines)), key=cosines.__getitem__)
    return [*range(first, first + count)]


# ---- which hidden units, and what makes up for them ----


def magnitude(model: nn.Module) -> list[Tensor]:
    """Per layer, (units,) the product of the norms of a hidden unit's weights."""
    parts = [(mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight) for mlp in _mlps(model)]
    return [gate.detach().norm(dim=1) * up.detach().norm(dim=1) * down.detach().norm(dim=0) for gate, up, down in parts]


def fluctuation(model: nn.Module, batches: Sequence[Batch]) -> list[Tensor]:
    """FLAP (An et al. 2024): per layer, (units,) the variance of a hidden unit x the squared norm of what reads it."""
    downs = [mlp.down_proj.weight.detach() for mlp in _mlps(model)]
    return [x.var(0) * down.square().sum(0) for x, down in zip(_units(model, batches), downs, strict=True)]


@torch.no_grad()
def narrow(
    model: nn.Module, batches: Sequence[Batch], scores: Sequence[Tensor], share: float, compensate: str = "none"
) -> nn.Module:
    """A copy whose MLPs have a share of their hidden units, those with the largest scores.

    `compensate`: "bias" adds the mean of what is lost (FLAP); "ridge" predicts the lost units by the others, linearly,
    and multiplies the prediction into the layer that reads them (GRAIL, 2025), from the original's activations.
    """
    small = copy.deepcopy(model)
    seen = _units(model, batches) if compensate != "none" else [torch.empty(0)] * len(scores)
    for mlp, score, x in zip(_mlps(small), scores, seen, strict=True):
        kept = score.topk(round(share * len(score))).indices.sort().values
        down = mlp.down_proj.weight.clone()
        bias = None
        if compensate == "bias":
            lost = torch.ones(len(score), dtype=torch.bool)
            lost[kept] = False
            bias = down[:, lost] @ x[:, lost].mean(0)
        matrix = down[:, kept]
        if compensate == "ridge":
            products = (x.T @ x).double()
            own = products[kept][:, kept]
            own.diagonal().add_(RIDGE * float(own.diagonal().mean()))
            matrix = (down.double() @ torch.linalg.solve(own, products[kept]).T).to(down)
        mlp.gate_proj, mlp.up_proj = _linear(mlp.gate_proj.weight[kept]), _linear(mlp.up_proj.weight[kept])
        mlp.down_proj = _linear(matrix, bias)
    return small


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight.copy_(weight)
    if bias is not None:
        layer.bias.copy_(bias)
    return layer


def _mlps(model: nn.Module) -> list[Any]:
    return [layer.mlp for layer in layers_of(model)]


@torch.no_grad()
def _units(model: nn.Module, batches: Sequence[Batch]) -> list[Tensor]:
    """Per layer, (tokens, units) the hidden units of the MLP."""
    with watching([mlp.down_proj for mlp in _mlps(model)], "input") as seen:
        for batch in batches:
            model.get_submodule("model")(**batch)
    return [torch.cat(parts).flatten(0, 1) for parts in seen]
