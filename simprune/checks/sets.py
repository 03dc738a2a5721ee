"""Check sets: lists of gates by name, for the argument `gates` of `validate` and `check`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from simprune.checks.corruptions import shifts
from simprune.checks.verdict import Gate
from simprune.core.batches import main_name
from simprune.core.harness import require
from simprune.core.labels import Labels
from simprune.core.registry import bound, register

Gates = str | Mapping[str, Any] | Sequence[Gate]  # a check set's name, a mapping with name and options, or gates


@register("check", "default")
def default() -> list[Gate]:
    """within 2 points of accuracy, 5 % changed answers, 0.05 nats of divergence, at 95 % confidence"""
    return [
        Gate("accuracy_drop", limit=0.02),
        Gate("disagreement", limit=0.05),
        Gate("jensen_shannon_divergence", limit=0.05),
    ]


@register("check", "unlabelled")
def unlabelled() -> list[Gate]:
    """for test data without labels: 5 % changed answers, 0.05 nats of divergence, at 95 % confidence"""
    return [Gate("disagreement", limit=0.05), Gate("jensen_shannon_divergence", limit=0.05)]


@register("check", "strict")
def strict() -> list[Gate]:
    """within 1 point of accuracy, 2 % changed answers, 5 points of every class's recall, calibration unchanged; needs
    many samples
    """
    return [
        Gate("accuracy_drop", limit=0.01),
        Gate("negative_flip_rate", limit=0.01),
        Gate("disagreement", limit=0.02),
        Gate("jensen_shannon_divergence", limit=0.01),
        Gate("max_class_recall_drop", limit=0.05),
        Gate("ece", limit=0.02),
    ]


@register("check", "robustness")
def robustness() -> list[Gate]:
    """images: within 5 points of the original's accuracy on corrupted inputs of three severities and under attacks"""
    kinds = ("noise", "blur", "brightness", "contrast", "jpeg", "fgsm", "pgd")
    return [Gate("accuracy_drop", limit=0.05, inputs=inputs) for kind in kinds for inputs in shifts(kind)]


@register("check", "representation")
def representation() -> list[Gate]:
    """every remaining block's outputs stay similar: 1 - debiased CKA at most 0.2"""
    return [Gate("block_drift", limit=0.2)]


@register("check", "embedding")
def embedding(*, pooling: str = "", cosine: float = 0.95, error: float = 0.3, neighbours: float = 0.7) -> list[Gate]:
    """for embeddings and regression: directions, sizes and nearest neighbours of output vectors; pooling: mean or first
    makes one vector of a text's tokens; keeps all outputs
    """
    options = {"pooling": pooling} if pooling else {}
    return [
        Gate("cosine_agreement", limit=cosine, options=options),
        Gate("relative_error", limit=error, options=options),
        Gate("neighbour_overlap", limit=neighbours, options=options),
    ]


@register("check", "segmentation")
def segmentation() -> list[Gate]:
    """for class scores of pixels, labels (N, H, W): 2 points of mean IoU, 5 of every class's, 5 % changed pixels"""
    return [
        Gate("miou_drop", limit=0.02),
        Gate("max_class_iou_drop", limit=0.05),
        Gate("pixel_disagreement", limit=0.05),
    ]


@register("check", "language_model")
def language_model(
    *,
    shift: bool = True,
    perplexity: float = 0.1,
    divergence: float = 0.1,
    agreement: float = 0.85,
    continuation: float | None = None,
    questions: str | None = None,
    accuracy_drop: float = 0.02,
) -> list[Gate]:
    """for language models: perplexity ratio, divergence and most likely token of every position; shift: false for
    masked ones
    """
    options = {"shift": shift}
    gates = [
        Gate("perplexity_increase", limit=perplexity, options=options),
        Gate("token_kl_divergence", limit=divergence, options=options),
        Gate("token_agreement", limit=agreement, options=options),
    ]
    if continuation is not None:
        gates.append(Gate("greedy_continuation", limit=continuation))
    if questions is not None:
        gates.append(Gate("multiple_choice_drop", limit=accuracy_drop, options={"path": questions}))
    return gates


@register("check", "tasks")
def tasks(
    *,
    tasks: Sequence[str],
    drop: float = 0.02,
    metric: str = "acc",
    examples: int | None = None,
    shots: int | None = None,
) -> list[Gate]:
    """for causal language models: accuracy on tasks of the installed lm-evaluation-harness, with a limit on its drop"""
    require()
    shared = {"metric": metric, "examples": examples, "shots": shots}
    named = [tasks] if isinstance(tasks, str) else tasks
    return [Gate("task_accuracy_drop", limit=drop, options={"tasks": (task,), **shared}) for task in named]


def fitting(outputs: Mapping[str, Tensor], labels: Labels | None) -> list[Gate]:
    """Default gates that fit what a model gives, one list per output where there are several.

    Class scores (N, C) get the set "default", maps with labels for every pixel the set "segmentation"; anything else,
    such as maps without labels and regression, is compared by `relative_error`. Labels belong to the outputs that
    `labelled` says.

    Args:
        outputs: of the first test batch, by name.
        labels: of the same batch, of the main output or by the name of the output.

    >>> import torch
    >>> [gate.measure for gate in fitting({"output": torch.zeros(2, 1, 8, 8)}, None)]
    ['relative_error']
    """
    if len(outputs) == 1:
        ((name, value),) = outputs.items()
        own = labels.get(name) if isinstance(labels, Mapping) else labels
        if value.ndim == 3 and own is not None and not fits(value, own):
            return gates_of(None)  # which raises: labels of tokens have no default set, one has to be chosen
    gates: list[Gate] = []
    with_labels = labelled(outputs, labels)
    for name, value in outputs.items():
        if value.ndim == 2 and value.shape[1] > 1:
            own = gates_of(None, name in with_labels)
        elif value.ndim > 2 and name in with_labels:
            own = segmentation()
        else:
            own = [Gate("relative_error", limit=0.3)]
        gates += own if len(outputs) == 1 else [replace(gate, output=name) for gate in own]
    return gates


def labelled(outputs: Mapping[str, Tensor], labels: Labels | None) -> list[str]:
    """Names of the outputs that labels belong to: those of fitting shape with as many classes as the first of them.

    The main output comes first. Early exits and auxiliary heads of the same classes share its labels in this way. Where
    labels are by output, each has its own.

    >>> import torch
    >>> labelled({"a": torch.zeros(2, 3), "b": torch.zeros(2, 5), "c": torch.zeros(2, 3)}, torch.tensor([0, 1]))
    ['a', 'c']
    """
    names = sorted(outputs, key=lambda name: name != main_name(outputs))
    if isinstance(labels, Mapping):
        return [name for name in names if fits(outputs[name], labels.get(name))]
    fitting_ones = [name for name in names if fits(outputs[name], labels)]
    return [name for name in fitting_ones if outputs[name].shape[1] == outputs[fitting_ones[0]].shape[1]]


def fits(output: Tensor, labels: Tensor | None) -> bool:
    """Whether labels are class indices for an output: (N,) for (N, C), or one for every position of (N, C, ...)."""
    if labels is None or labels.is_floating_point():
        return False
    return output.ndim >= 2 and labels.shape == (output.shape[0], *output.shape[2:])


def gates_of(gates: Gates | None = None, labelled: bool = True) -> list[Gate]:
    """The list of gates for any form of the argument `gates`.

    Args:
        gates: gates; or the name of a check set, or a mapping with its `name` and options; None for the set "default".
        labelled: whether the test data have labels; if not, the default set is without the gates that need them.

    Raises:
        KeyError: for an unknown check set; the message says what was probably meant.
        ValueError: for something else than gates, or for none.

    >>> [gate.measure for gate in gates_of("default")]
    ['accuracy_drop', 'disagreement', 'jensen_shannon_divergence']
    """
    if gates is None:
        return [gate for gate in default() if labelled or not gate.build().needs_labels]
    if isinstance(gates, str | Mapping):
        return gates_of(bound("check", gates)())
    if isinstance(gates, Gate) or not isinstance(gates, Sequence):
        one = "put it into a list, [Gate(...)]" if isinstance(gates, Gate) else "pass a list of Gate(...)"
        raise ValueError(f"gates must be a list of gates or the name of a check set; got {gates!r:.80}: {one}")
    for gate in gates:
        if not isinstance(gate, Gate):
            raise ValueError(f"gates must be a list of Gate(measure, limit=...); got {gate!r:.80} in it")
    if not gates:
        raise ValueError("there is no gate to check; pass at least one, or gates=None for the default ones")
    return list(gates)
