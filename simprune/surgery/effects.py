"""What a plan does to each tensor of the original model: the prediction that the edited network has to meet."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from simprune.cost import Example
from simprune.planning.plan import Plan
from simprune.surgery.coupling import CouplingGraph, NotPrunable, Slice


@dataclass(frozen=True)
class Effects:
    """Entries that go, by (tensor, dimension), in the original's numbering; blocks that go whole."""

    removed: Mapping[tuple[str, int], tuple[int, ...]]
    dropped: tuple[str, ...]
    producers: Mapping[str, tuple[str, ...]]  # edit -> layers with the same channels in the same order

    @property
    def cut(self) -> dict[tuple[str, int], int]:
        """Number of entries that go, as `CostModel.after` takes it."""
        return {key: len(indices) for key, indices in self.removed.items()}

    def inside_dropped(self, name: str) -> bool:
        return any(name == block or name.startswith(f"{block}.") for block in self.dropped)

    def kept(self, tensor: str, dim: int, length: int) -> list[int]:
        """Indices of the original that stay along one dimension."""
        gone = set(self.removed.get((tensor, dim), ()))
        return [index for index in range(length) if index not in gone]


def effects_of(plan: Plan, model: nn.Module, example: Example) -> Effects:
    """Trace the original once and look up every edit. Raises ValueError for an edit that cannot be made."""
    removed: dict[tuple[str, int], set[int]] = {}
    producers: dict[str, tuple[str, ...]] = {}
    edits = list(plan.channels)
    graph = CouplingGraph(model, example) if edits else None
    for edit in edits:
        assert graph is not None
        try:
            slices = graph.slices(edit.name)
        except NotPrunable as reason:
            raise ValueError(f"plan: channels of {edit.name} cannot be removed: {reason}") from None
        producers[edit.name] = tuple(dict.fromkeys(part.module for part in slices if _same_order(part)))
        for part in slices:
            gone = {index for channel in edit.indices for index in part.indices[channel]}
            removed.setdefault((part.tensor, part.dim), set()).update(gone)
    return Effects({key: tuple(sorted(gone)) for key, gone in removed.items()}, plan.blocks, producers)


def _same_order(part: Slice) -> bool:
    return part.side == "out" and all(indices == (channel,) for channel, indices in enumerate(part.indices))
