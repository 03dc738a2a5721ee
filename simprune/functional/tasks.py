"""Accuracy on tasks of the lm-evaluation-harness."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core.harness import BINARY, answers, require
from simprune.functional._base import Gathered, Score
from simprune.functional._models import GatheredMeasure
from simprune.trace.context import evaluation


@dataclass(frozen=True)
class TaskAccuracyDrop(GatheredMeasure):
    """Accuracy of a minus that of b on tasks of the installed lm-evaluation-harness, in [-1, 1]; negative: b is better.

    All examples of all `tasks` count alike. `metric`: "acc", "acc_norm" or "exact_match". `examples`: of every task,
    None for all. `shots`: examples in the prompt, None for what the task says. `tokenizer`: a name or folder; "" for
    that which the original was loaded from. Test batches are not used. `details`: "original" and "pruned" accuracy.
    ValueError where the package lm_eval is missing.

    >>> TaskAccuracyDrop(("arc_easy",), examples=200).id
    'task_accuracy_drop'
    """

    tasks: Sequence[str]
    metric: str = "acc"
    examples: int | None = None
    shots: int | None = None
    tokenizer: str = ""

    id = "task_accuracy_drop"
    range = (-1.0, 1.0)
    kind = "difference"
    source = "paired difference of accuracies of lm-evaluation-harness"

    def __post_init__(self) -> None:
        super().__post_init__()
        tasks = [self.tasks] if isinstance(self.tasks, str) else self.tasks
        object.__setattr__(self, "tasks", tuple(tasks))
        self._require(len(self.tasks) > 0, "at least one task is needed")
        self._require(self.metric in BINARY, f"the metric must be one of {', '.join(BINARY)}; got {self.metric!r}")

    def ready(self) -> None:
        """Raise ValueError where the harness is not installed."""
        require()

    def gather(self, model_a: nn.Module, model_b: nn.Module, batches: Any) -> Gathered:
        """Rows (examples, 3): the difference, and whether a and b are right.

        Args:
            model_a: the original.
            model_b: the pruned model.
            batches: not used.

        Raises:
            ValueError: where the harness is missing, and for tasks or a tokenizer that it cannot use.
        """
        name = self.tokenizer or getattr(model_a, "name_or_path", "")
        if not name:
            raise ValueError(f"{self.id}: the model does not say what it was loaded from; set options.tokenizer")
        how = (name, self.tasks, self.metric, self.examples, self.shots)
        with evaluation(model_a, model_b):
            a, b = (answers(model, *how) for model in (model_a, model_b))
        return Gathered(torch.tensor([[a[key] - b[key], a[key], b[key]] for key in sorted(a)], dtype=torch.float64))

    def reduce(self, rows: Tensor) -> Score:
        score = super().reduce(rows)
        _, a, b = rows.mean(0).tolist()
        score.details.update(original=a, pruned=b)
        return score
