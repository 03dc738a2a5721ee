"""What became of each edit: the error that the repair left at its place."""

from collections.abc import Mapping, Sequence
from typing import Any

from simprune.core.plan import Edit, Plan
from simprune.core.redundancy import Redundancy


def outcomes(plan: Plan, redundancy: Redundancy, refits: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The edits as data, with `left`: the relative squared error of what reads the place, after the repair.

    Readers are the layers that read the channels or heads, mean over them, and behind a block the first layer that was
    refitted; where a reader lies in a block that was refitted as a whole, that block. Errors of edits before it are in
    it. `refits`: of `reconstruct`, in order of execution. Without a refitted reader there is no `left`.
    """
    readers = {entry.name: entry.group.consumers for entry in redundancy.channels}
    order = list(dict.fromkeys(name.rpartition(".")[0] for name in redundancy.costs.tensors))  # as defined
    refitted = [str(refit["layer"]) for refit in refits]

    def reading(edit: Edit) -> Sequence[str]:
        if edit.remove != "block":
            return readers.get(edit.name, ())
        last = max((place for place, name in enumerate(order) if _within(name, edit.name)), default=len(order))
        return [name for name in order[last + 1 :] if name in refitted][:1]

    def left(edit: Edit) -> dict[str, float]:
        found = [[refit["after"] for refit in refits if _within(name, refit["layer"])] for name in reading(edit)]
        errors = [each[-1] for each in found if each]  # that of the block comes behind those of its layers
        return {"left": sum(errors) / len(errors)} if errors else {}

    return [edit.to_dict() | left(edit) for edit in plan.edits]


def _within(name: str, around: str) -> bool:
    return f"{name}.".startswith(f"{around}.")
