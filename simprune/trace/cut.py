"""Take heads out of an attention module: slices of its tensors, and the numbers that its forward pass reads."""

from collections.abc import Iterable

import torch
from torch import nn

from simprune.trace.attention import is_conv1d


def cut(model: nn.Module, tensor: str, dim: int, gone: Iterable[int]) -> None:
    """Remove entries of one parameter; the layer's stated sizes follow, and so does a gradient."""
    name, _, attribute = tensor.rpartition(".")
    owner, old = model.get_submodule(name), model.get_parameter(tensor)
    removed = set(gone)
    kept = torch.tensor([i for i in range(old.shape[dim]) if i not in removed], device=old.device)
    new = nn.Parameter(old.detach().index_select(dim, kept), requires_grad=old.requires_grad)
    if old.grad is not None:
        new.grad = old.grad.index_select(dim, kept)
    setattr(owner, attribute, new)
    if attribute == "weight" and isinstance(owner, nn.Linear):
        owner.out_features, owner.in_features = new.shape
    elif attribute == "weight" and is_conv1d(owner):
        owner.nx, owner.nf = new.shape  # type: ignore[assignment]
