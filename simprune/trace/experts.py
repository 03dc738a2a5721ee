"""Mixtures of experts: which modules are mixtures, and which entries of their tensors belong to every expert.

A mixture holds experts, all alike, and a router: a matrix with one row per expert, by which every token selects some of
them. The experts are modules in a list, or lie one behind the other along the first dimension of tensors (`fused`).
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from simprune.core.batches import first_tensor, tensors_in

# Names under which modules state numbers of experts: of all, of those that a token selects, and of groups of them.
EXPERT_COUNTS = (
    "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts", "n_experts",
    "n_local_experts", "E",
)  # fmt: skip
SELECTED = ("top_k", "num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_k", "topk", "num_selected", "k")
GROUP_COUNTS = ("num_group", "n_group", "num_expert_group")
SELECTED_GROUPS = ("topk_group", "num_limited_groups")
IN_A_GROUP = 2  # routers with groups compare them by their two best experts


@dataclass(frozen=True)
class Mixture:
    """One mixture of experts.

    Args:
        name: of the module that holds experts and router.
        size: number of experts.
        selected: how many of them a token selects; 1 where that is not stated.
        groups: of experts, from which the router selects some first; 1 where there are none.
        selected_groups: how many of the groups a token selects.
        router: the matrix with one row per expert.
        rows: tensors that have one entry per expert, the router's matrix first, and the dimension of these entries.
        members: names of the experts, where each is a module; empty where they are fused.
        fused: tensors in which the experts lie along the first dimension.
    """

    name: str
    size: int
    selected: int
    groups: int
    selected_groups: int
    router: str
    rows: tuple[tuple[str, int], ...]
    members: tuple[str, ...]
    fused: tuple[str, ...]

    @property
    def units(self) -> tuple[tuple[int, ...], ...]:
        """Experts that go together: one, or one of every group, since a router's groups are equally large."""
        size = self.size // self.groups
        return tuple(tuple(range(first, self.size, size)) for first in range(size))

    @property
    def least(self) -> int:
        """Units that have to stay, so that every token still has as many experts to select."""
        if self.groups == 1:
            return self.selected
        return max(IN_A_GROUP, -(-self.selected // self.selected_groups))

    @property
    def container(self) -> str:
        """Name of the list of experts; empty where they are fused."""
        return self.members[0].rpartition(".")[0] if self.members else ""


def mixtures(model: nn.Module) -> dict[str, Mixture]:
    """All mixtures of a model, by name.

    >>> class Sparse(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.top_k, self.gate = 1, nn.Linear(8, 3)
    ...         self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
    >>> mixtures(nn.Sequential(Sparse()))["0"].rows
    (('0.gate.weight', 0), ('0.gate.bias', 0))
    """
    layouts = ((name, _mixture(name, module)) for name, module in model.named_modules())
    return {name: layout for name, layout in layouts if layout is not None}


def _mixture(name: str, module: nn.Module) -> Mixture | None:
    prefix = f"{name}." if name else ""
    children = dict(module.named_children())
    listed = {child: part for child, part in children.items() if _are_experts(part)}
    sizes = {child: len(list(part.children())) for child, part in listed.items()}
    sizes |= {child: size for child, part in children.items() if (size := _fused_size(part))}
    for size in dict.fromkeys(sizes.values()):
        holders = [child for child, own in sizes.items() if own == size]
        around = [module, *(part for child, part in children.items())]
        around += [inner for child, part in children.items() if child not in listed for inner in part.modules()]
        if not any("expert" in child for child in holders) and size not in _stated(around, EXPERT_COUNTS):
            continue
        free = [(key, tensor) for key, tensor in _tensors(module) if key.split(".")[0] not in holders]
        router = next((key for key, tensor in free if tensor.ndim == 2 and len(tensor) == size < tensor.numel()), None)
        if router is None:
            continue
        beside = router.rpartition(".")[0]
        rows = [(key, tensor) for key, tensor in free if key.rpartition(".")[0] == beside or tensor.numel() == size]
        rows = [(key, list(t.shape).index(size)) for key, t in rows if key != router and size in t.shape and t.ndim < 3]
        lists = [child for child in holders if child in listed]
        if len(lists) > 1:
            continue
        members = [f"{prefix}{lists[0]}.{key}" for key, _ in listed[lists[0]].named_children()] if lists else []
        fused = [key for key, _ in _tensors(module) if key.split(".")[0] in holders and not lists]
        return Mixture(
            name,
            size,
            selected=min(next(iter(_stated(around, SELECTED)), 1), size),
            groups=next(iter(_stated(around, GROUP_COUNTS)), 1),
            selected_groups=next(iter(_stated(around, SELECTED_GROUPS)), 1),
            router=prefix + router,
            rows=tuple((prefix + key, dim) for key, dim in [(router, 0), *rows]),
            members=tuple(members),
            fused=tuple(prefix + key for key in fused),
        )
    return None


def _are_experts(module: nn.Module) -> bool:
    """Whether a module is a list of at least two modules that multiply with weights, all alike."""
    if not isinstance(module, nn.ModuleList | nn.ModuleDict) or len(module) < 2:
        return False
    kinds = {(type(part), tuple((key, t.shape) for key, t in _tensors(part))) for part in module.children()}
    return len(kinds) == 1 and any(p.ndim > 1 for p in module.parameters())


def _fused_size(module: nn.Module) -> int:
    """Number of experts in a module whose parameters all begin with them, and one of which holds matrices; or 0."""
    shapes = [tuple(parameter.shape) for parameter in module.parameters()]
    convolution = isinstance(module, nn.modules.conv._ConvNd)
    if convolution or not any(len(shape) == 3 for shape in shapes) or len({shape[:1] for shape in shapes}) > 1:
        return 0
    return shapes[0][0] if shapes[0][0] > 1 else 0


def _stated(modules: Sequence[nn.Module], names: Sequence[str]) -> list[int]:
    """Whole numbers that modules state under some names, in the order of the modules."""
    values = (vars(module).get(name) for module in modules for name in names)
    return [value for value in values if type(value) is int]


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(module.named_parameters(), module.named_buffers())


def masking(model: nn.Module, mixture: Mixture, gone: Collection[int]) -> Callable[..., Any]:
    """The forward pass of a mixture in which no token can select some of its experts: their logits are -inf.

    Args:
        model: that contains the mixture; with the name "" the mixture itself.
        mixture: the mixture.
        gone: numbers of the experts.
    """
    module = model.get_submodule(mixture.name)
    forward, experts = module.forward, torch.tensor(sorted(gone), dtype=torch.long)

    def without(*args: Any, **kwargs: Any) -> Any:
        tensors = dict(chain(model.named_parameters(), model.named_buffers()))
        with _Unselected([tensors[name] for name, _ in mixture.rows], mixture.size, experts):
            return forward(*args, **kwargs)

    return without


class _Unselected(TorchFunctionMode):
    """Whatever is computed from the router's tensors and has an entry per expert, has -inf for some experts.

    Args:
        rows: the router's tensors.
        size: number of experts.
        gone: those that cannot be selected.
    """

    def __init__(self, rows: Sequence[Tensor], size: int, gone: Tensor) -> None:
        super().__init__()
        self.rows = {id(tensor): tensor for tensor in rows}
        self.size, self.gone = size, gone

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        values = [*tensors_in((args, kwargs or {}))]
        if not isinstance(result, Tensor) or not result.is_floating_point():
            return result
        read = next((value for value in values if id(value) in self.rows), None)
        if read is None or not result.ndim:
            return result
        if len(values) == 1:  # another type, or transposed
            if result.numel() == read.numel():
                self.rows[id(result)] = result
            return result
        if result.shape[-1] != self.size:
            return result
        return result.index_fill(-1, self.gone.to(result.device), float("-inf"))


def hidden_states(args: tuple, kwargs: dict) -> Tensor | None:
    """The tokens that a mixture gets; None where it gets more tensors than these."""
    values = [*tensors_in((args, kwargs))]
    return first_tensor((args, kwargs)) if len(values) == 1 else None
