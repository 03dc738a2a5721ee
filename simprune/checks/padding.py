"""What counts in a batch of texts: padding does not, and the tokens themselves are the labels of a language model."""

from typing import Any

from torch import Tensor, nn

from simprune.core.batches import documents_of, output_mask_of, token_ids_of
from simprune.core.labels import labels_of
from simprune.core.tokens import speaks
from simprune.functional.tokens import IGNORE, TokenTargets


def without_padding(outputs: Tensor, mask: Tensor | None) -> Tensor:
    """Outputs (N, T, ...) on the CPU, zero at padding, so that no measure sees what a model says there.

    Args:
        outputs: of a model; outputs of another shape than the mask come back as they are.
        mask: (N, T) of the batch, true for tokens; None without padding.

    >>> import torch
    >>> without_padding(torch.ones(1, 2, 1), torch.tensor([[True, False]])).flatten()
    tensor([1., 0.])
    """
    outputs = outputs.cpu()
    if mask is None or outputs.ndim < 3 or mask.shape != outputs.shape[:2] or mask.all():
        return outputs
    return outputs.masked_fill(~mask.cpu().reshape(*mask.shape, *[1] * (outputs.ndim - 2)), 0)


def targets_of(batch: Any, model: nn.Module, outputs: Tensor) -> TokenTargets | None:
    """Labels, mask and documents of a batch whose outputs are of tokens; None for other outputs.

    Labels are the batch's own. A language model without labels gets its tokens as labels, as transformers takes them:
    its outputs are then as wide as its embedding has tokens.

    Args:
        batch: the batch.
        model: that gave the outputs.
        outputs: (N, T, C) of tokens, or others.
    """
    if outputs.ndim != 3:
        return None
    shape = outputs.shape[:2]
    mask, labels, ids = output_mask_of(batch), labels_of(batch), token_ids_of(batch)
    mask = mask if mask is not None and mask.shape == shape else None
    if labels is None and ids is not None and ids.shape == shape and speaks(model, batch, outputs):
        labels = ids.detach().cpu().long()
        labels = labels if mask is None else labels.masked_fill(~mask.cpu(), IGNORE)
    documents = documents_of(batch)
    return TokenTargets(labels, mask, documents if documents is not None and documents.shape == shape else None)
