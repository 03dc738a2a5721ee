"""Whether a model is a language model: it scores the tokens that it takes, and each only by those before it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core.batches import TOKEN_KEYS, call, output_mask_of, token_ids_of

ROUNDING = 8  # units of precision by which the scores of a token may differ from one pass to the next


def speaks(model: nn.Module, batch: Any, output: Tensor | None) -> bool:
    """Whether an output (N, T, C) of a model is scores of tokens like the (N, any) ones of the batch.

    An embedding alone does not tell: two classes of tokens are as many as the two types of segments of BERT. There may
    be more positions than tokens, such as those of an image, or fewer, such as those that a decoder writes.

    >>> model, ids = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9)), torch.tensor([[3, 8]])
    >>> speaks(model, ids, model(ids)), speaks(model, ids, model(ids).mean(1)), speaks(model, ids + 1, model(ids))
    (True, False, False)
    """
    ids = token_ids_of(batch)
    if ids is None or output is None or output.ndim != 3 or len(ids) != len(output) or not ids.numel():
        return False
    width = output.shape[2]
    embeddings = (module for module in model.modules() if isinstance(module, nn.Embedding))
    return int(ids.max()) < width and any(embedding.num_embeddings == width for embedding in embeddings)


def is_causal(model: nn.Module, batch: Any) -> bool:
    """Whether the scores of a token stay the same when a later token is another one; two forward passes of one row.

    False for scores at other positions than those of the tokens.

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
    a, b = (call(model, _with_tokens(batch, tokens, row))[0] for tokens in (ids[row : row + 1], other))
    if len(a) != ids.shape[1]:
        return False
    a, b = a[:last].double(), b[:last].double()
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
