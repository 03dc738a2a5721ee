"""The result of every edit: the error that the repair left in the layer behind it."""

from collections.abc import Mapping, Sequence
from typing import Any

from simprune.core.plan import Edit, Plan
from simprune.core.redundancy import Redundancy


def outcomes(plan: Plan, redundancy: Redundancy, refits: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The edits as data, with `left`: the relative squared error of the layers that read what was edited, repaired.

    Readers are the layers that read the channels or heads, mean over them, and behind a block the first layer that was
    refitted; where a reader lies in a block that was refitted as a whole, that block. The error includes what earlier
    edits cause.

    Args:
        plan: the edits.
        redundancy: of the structures that the plan edits.
        refits: results of `reconstruct` as data, in order of execution.

    Returns:
        The edits in the order of the plan; without `left` where no reader was refitted.
    """
    readers = {entry.name: entry.group.consumers for entry in redundancy.channels}
    order = list(dict.fromkeys(name.rpartition(".")[0] for name in redundancy.costs.tensors))  # as defined
    refitted = [str(refit["layer"]) for refit in refits]

    def reading(edit: Edit) -> Sequence[str]:
        if edit.remove != "block":
            return readers.get(edit.name, ())
        last = max((index for index, name in enumerate(order) if _within(name, edit.name)), default=len(order))
        return [name for name in order[last + 1 :] if name in refitted][:1]

    def left(edit: Edit) -> dict[str, float]:
        by_reader = [[refit["after"] for refit in refits if _within(name, refit["layer"])] for name in reading(edit)]
        last = [errors[-1] for errors in by_reader if errors]  # the error of a block comes behind those of its layers
        return {"left": sum(last) / len(last)} if last else {}

    return [edit.to_dict() | left(edit) for edit in plan.edits]


def _within(name: str, around: str) -> bool:
    return f"{name}.".startswith(f"{around}.")
