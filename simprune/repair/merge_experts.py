"""Experts that went are merged into similar ones, with their rows of the router.

The idea is that of M-SMoE (Li et al. 2024, arXiv:2310.01334): the mean of two experts, weighted by how many tokens they
see, takes the place of both. Here experts are alike if their outputs are, on the tokens that see either of them.
"""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from simprune.core.batches import first_tensor
from simprune.core.registry import register
from simprune.core.structures import UnitGroup
from simprune.repair._task import Task
from simprune.repair.refit import Refit
from simprune.scores.experts import ExpertScore, score_experts, tokens_of
from simprune.structures.experts import expert_group
from simprune.trace.context import eval_mode
from simprune.trace.experts import Mixture, mixtures


@register("repair", "merge_experts", title="experts merged", order=0, source="Li et al. 2024, M-SMoE")
@torch.no_grad()
def merge_experts(task: Task) -> list[Refit]:
    """Every expert that went is merged into the remaining one whose outputs are most like its own.

    Weights and rows of the router become means, weighted by how many tokens see an expert. A mixture stays as it is
    where that brings its outputs no nearer to the original's, as with experts whose hidden units stand in another
    order. One forward pass, and passes of the mixtures alone.

    Args:
        task: what is repaired; `chosen` tells by name whether a mixture takes part.

    Returns:
        The error of every mixture's output before and after, on its inputs in the original.
    """
    network = task.network
    gone = {edit.name: edit.indices for edit in task.plan.of_kind("experts") if task.chosen(edit.name)}
    groups = [expert_group(network.model, network.mixtures[name]) for name in gone]
    if not groups:
        return []
    scores, tokens = score_experts(network, task.batches, groups), tokens_of(network, task.batches, groups)
    layouts, refits = mixtures(task.small), list[Refit]()
    for group in groups:
        name, layout = group.name, network.mixtures[group.name]
        merged = _merged(network.model, layout, _shares(group, gone[name], scores[name]), gone[name])
        before = {key: _tensor(task.small, key).clone() for key in _tensors(task.small, layouts[name])}
        if [value.shape for value in merged] != [value.shape for value in before.values()]:
            task.notes.append(f"{name}: its experts were not merged, because their channels went too")
            continue
        states = first_tensor(network.visits[name].call) if name else first_tensor(network.example)
        assert states is not None
        original, small = (model.get_submodule(name) for model in (network.model, task.small))
        wanted = _outputs(original, tokens[name], states.ndim)
        spread = float((wanted - wanted.mean(0)).square().sum()) or 1.0
        errors = [float((_outputs(small, tokens[name], states.ndim) - wanted).square().sum()) / spread]
        for key, value in zip(before, merged, strict=True):
            _tensor(task.small, key).copy_(value)
        errors.append(float((_outputs(small, tokens[name], states.ndim) - wanted).square().sum()) / spread)
        if not errors[1] < errors[0]:
            task.notes.append(
                f"{name}: its experts were not merged, because its outputs come no nearer to the original's"
            )
            for key, value in before.items():
                _tensor(task.small, key).copy_(value)
        refits.append(Refit(name, errors[0], min(errors)))
    return refits


def _shares(group: UnitGroup, gone: Collection[int], score: ExpertScore) -> Tensor:
    """(experts left, experts): the shares of which the means are made."""
    units = [set(unit) <= {*gone} for unit in group.units]  # whether they went
    left = [number for number, went in enumerate(units) if not went]
    shares = torch.zeros(group.width, group.width, dtype=torch.float64)
    for number, unit in enumerate(group.units):
        to = left[int(score.similarity[number, left].argmax())] if units[number] else number
        for expert, target in zip(unit, group.units[to], strict=True):
            shares[target, expert] = float(score.seen[number]) + (1e-9 if to == number else 0.0)
    shares = shares[[expert for expert in range(group.width) if expert not in gone]]
    return shares / shares.sum(1, keepdim=True)


def _merged(model: nn.Module, layout: Mixture, shares: Tensor, gone: Collection[int]) -> list[Tensor]:
    """The means, tensor by tensor in the order of `_tensors`."""
    means = []
    for key, dim in _entries(layout):
        value = _tensor(model, key).movedim(dim, 0)
        means.append(torch.einsum("re,e...->r...", shares.to(value), value).movedim(0, dim))
    parts = [dict(_state(model.get_submodule(member))) for member in layout.members]
    left = [expert for expert in range(layout.size) if expert not in gone]
    for row, expert in zip(shares, left, strict=True) if parts else ():
        for key in parts[expert]:
            means.append(sum(float(share) * part[key] for share, part in zip(row, parts, strict=True) if share))
    return means


def _tensors(model: nn.Module, layout: Mixture) -> list[str]:
    """Names of all tensors of a mixture's experts and its router."""
    inside = [f"{member}.{key}" for member in layout.members for key, _ in _state(model.get_submodule(member))]
    return [*(key for key, _ in _entries(layout)), *inside]


def _entries(layout: Mixture) -> list[tuple[str, int]]:
    """Tensors with one entry per expert, and the dimension of the entries."""
    return [*layout.rows, *((tensor, 0) for tensor in layout.fused)]


def _state(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(key, value) for key, value in [*module.named_parameters(), *module.named_buffers()] if value.ndim]


def _tensor(model: nn.Module, name: str) -> Tensor:
    owner, _, key = name.rpartition(".")
    return getattr(model.get_submodule(owner), key)


def _outputs(mixture: nn.Module, tokens: Tensor, dims: int) -> Tensor:
    """(tokens, width) what a mixture gives for tokens, in float32."""
    with eval_mode(mixture):
        output = first_tensor(mixture(tokens.view(*[1] * (dims - 2), *tokens.shape)))
    assert output is not None
    return output.reshape(len(tokens), -1).float()
