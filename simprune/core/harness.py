"""Tasks of EleutherAI's lm-evaluation-harness, whether every example is answered rightly; needs the package lm_eval."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from simprune.core.pretrained import load

MISSING = "the package lm_eval is not installed; pip install lm-eval"
BINARY = ("acc", "acc_norm", "exact_match")  # metrics that say of every example whether it is right


def require() -> None:
    """Raise ValueError, with what to do, where lm_eval is not installed."""
    try:
        import lm_eval  # noqa: F401 # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(MISSING) from None


def answers(
    model: nn.Module, tokenizer: str, tasks: Sequence[str], metric: str, examples: int | None, shots: int | None
) -> dict[tuple[str, int], float]:
    """Whether a model is right, 0 or 1, on every example of tasks.

    Args:
        model: a causal language model of transformers.
        tokenizer: its name, folder or GGUF file.
        tasks: names that the harness knows.
        metric: of the harness, for one example.
        examples: of every task, the first ones; None: all.
        shots: examples in the prompt; None: what the task says.

    Returns:
        By task and number of the example.

    Raises:
        ValueError: where lm_eval is missing, for a task that it does not know, and for a metric that a task does not
            have or that is not 0 or 1.
    """
    require()
    import lm_eval  # pyright: ignore[reportMissingImports]
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

    wrapped = HFLM(pretrained=model, tokenizer=load("AutoTokenizer", tokenizer))
    try:
        results = lm_eval.simple_evaluate(
            model=wrapped, tasks=list(tasks), num_fewshot=shots, limit=examples, log_samples=True, bootstrap_iters=0
        )
    except (KeyError, ValueError) as error:  # for unknown tasks
        raise ValueError(f"lm_eval refuses the tasks {', '.join(tasks)}: {str(error)[:200]}") from error
    rights: dict[tuple[str, int], float] = {}
    for task, samples in results["samples"].items():
        for sample in samples:  # one entry for every filter of answers, of which the first counts
            if (key := (task, int(sample["doc_id"]))) not in rights:
                rights[key] = _right(task, sample, metric)
    return rights


def _right(task: str, sample: dict[str, Any], metric: str) -> float:
    """The metric of one example."""
    if metric not in sample:
        known = [name for name in BINARY if name in sample]
        raise ValueError(f"lm_eval: the task {task} has no metric {metric!r} per example; it has {', '.join(known)}")
    value = float(sample[metric])
    if value not in (0.0, 1.0):
        raise ValueError(f"lm_eval: {metric} of {task} is {value:g} for an example; expected 0 or 1, as of acc")
    return value
