"""Check sets: lists of gates by name, for the argument `gates` of `validate` and `check`."""

from collections.abc import Mapping, Sequence
from typing import Any

from simprune.checks.corruptions import shifts
from simprune.checks.verdict import Gate
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
def embedding() -> list[Gate]:
    """for embeddings and regression: directions, sizes and nearest neighbours of output vectors; keeps all outputs"""
    return [
        Gate("cosine_agreement", limit=0.95),
        Gate("relative_error", limit=0.3),
        Gate("neighbour_overlap", limit=0.7),
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
