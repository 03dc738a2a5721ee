"""Gates by default for models whose outputs are of tokens: a language model is checked as one, without being asked."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from simprune.checks.padding import targets_of
from simprune.checks.sets import language_model
from simprune.checks.verdict import Gate
from simprune.core.batches import main_name, token_ids_of
from simprune.core.labels import labels_of
from simprune.core.tokens import is_causal, speaks
from simprune.functional.tokens import IGNORE


def gates_of_tokens(model: nn.Module, batch: Any, outputs: Mapping[str, Tensor]) -> list[Gate] | None:
    """The check set "language_model" for scores (N, T, C) of tokens; None for a model of anything else.

    A language model scores the tokens that it takes; labels, where there are none, are these tokens. A model that
    scores classes of tokens, with a label for every token, gets the gates of the set that fit it.

    Args:
        model: the original.
        batch: of the test data.
        outputs: of the model on the batch.
    """
    output = outputs[main_name(outputs)]
    targets = targets_of(batch, model, output)
    if targets is None or targets.labels is None or targets.labels.shape != output.shape[:2]:
        return None
    if not speaks(model, batch, output):
        return [gate for gate in language_model(shift=False) if gate.measure != "perplexity_increase"]
    return language_model(shift=labels_are_inputs(batch, targets.labels) and is_causal(model, batch))


def lends_labels(model: nn.Module, batch: Any, outputs: Mapping[str, Tensor]) -> bool:
    """Whether a batch has no labels and needs none, because the tokens that a language model takes are its labels."""
    targets = targets_of(batch, model, outputs[main_name(outputs)])
    return labels_of(batch) is None and targets is not None and targets.labels is not None


def labels_are_inputs(batch: Any, labels: Tensor) -> bool:
    """Whether labels are the tokens of the batch themselves, as transformers takes them, wherever they count.

    >>> import torch
    >>> ids = torch.tensor([[3, 4, 5]])
    >>> labels_are_inputs(ids, torch.tensor([[-100, 4, 5]])), labels_are_inputs(ids, torch.tensor([[4, 5, -100]]))
    (True, False)
    """
    ids = token_ids_of(batch)
    if ids is None or ids.shape != labels.shape:
        return False
    counts = labels != IGNORE
    return bool((ids.cpu() == labels.cpu())[counts.cpu()].all())
