"""None: what the edits left stays as it is."""

from simprune.core.registry import register
from simprune.repair._task import Task
from simprune.repair.refit import Refit


@register("repair", "none", title="", order=0, data=False)
def nothing(task: Task) -> list[Refit]:
    """Nothing is repaired."""
    return []
