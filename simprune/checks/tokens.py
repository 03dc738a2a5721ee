"""Gates by default for models whose outputs are of tokens: a language model is checked as one, without being asked."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from simprune.checks.padding import speaks, targets_of
from simprune.checks.sets import language_model
from simprune.checks.verdict import Gate
from simprune.core.batches import TOKEN_KEYS, call, labels_of, main_name, output_mask_of, token_ids_of
from simprune.functional.tokens import IGNORE

ROUNDING = 8  # units of precision by which the scores of a token may differ from one pass to the next


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
    if not speaks(model, output.shape[2]):
        return [gate for gate in language_model(shift=False) if gate.measure != "perplexity_increase"]
    return language_model(shift=labels_are_inputs(batch, targets.labels) and is_causal(model, batch))


def lends_labels(model: nn.Module, batch: Any, outputs: Mapping[str, Tensor]) -> bool:
    """Whether a batch has no labels and needs none, because the tokens that a language model takes are its labels."""
    targets = targets_of(batch, model, outputs[main_name(outputs)])
    return labels_of(batch) is None and targets is not None and targets.labels is not None


def labels_are_inputs(batch: Any, labels: Tensor) -> bool:
    """Whether labels are the tokens of the batch themselves, as transformers takes them, wherever they count.

    >>> ids = torch.tensor([[3, 4, 5]])
    >>> labels_are_inputs(ids, torch.tensor([[-100, 4, 5]])), labels_are_inputs(ids, torch.tensor([[4, 5, -100]]))
    (True, False)
    """
    ids = token_ids_of(batch)
    if ids is None or ids.shape != labels.shape:
        return False
    counts = labels != IGNORE
    return bool((ids.cpu() == labels.cpu())[counts.cpu()].all())


def is_causal(model: nn.Module, batch: Any) -> bool:
    """Whether the scores of a token stay the same when a later token is another one; two forward passes of one row.

    Args:
        model: that takes tokens, in evaluation mode.
        batch: with tokens; the row with the most of them is used.

    >>> is_causal(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9)), torch.tensor([[3, 4, 5]]))
    True
    """
    ids, mask = token_ids_of(batch), output_mask_of(batch)
    assert ids is not None
    open_ = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    row = int(open_.sum(1).argmax())
    last = int(open_[row].nonzero().max())
    other = ids[row : row + 1].clone()
    other[0, last] = torch.where(other[0, last] == 0, 1, 0)
    a, b = (call(model, _with_tokens(batch, tokens, row))[0, :last].double() for tokens in (ids[row : row + 1], other))
    a, b = (scores[open_[row, :last].to(scores.device)] for scores in (a, b))
    precision = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return not len(a) or bool((a - b).abs().max() <= ROUNDING * torch.finfo(precision).eps * a.abs().max())


def _with_tokens(batch: Any, tokens: Tensor, row: int) -> Any:
    """One row of a batch, with other tokens."""
    if isinstance(batch, Tensor):
        return tokens
    if isinstance(batch, Mapping):
        key = next(key for key in TOKEN_KEYS if batch.get(key) is not None)
        rows = {name: value[row : row + 1] if _of_rows(value) else value for name, value in batch.items()}
        return rows | {key: tokens}
    inputs = batch[0]
    if isinstance(inputs, Mapping):
        return (_with_tokens(inputs, tokens, row),)
    if isinstance(inputs, tuple | list):
        return ((tokens, *(value[row : row + 1] if _of_rows(value) else value for value in inputs[1:])),)
    return (tokens,)


def _of_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0
