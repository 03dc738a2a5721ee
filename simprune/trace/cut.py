"""Removing entries of one parameter or buffer, together with the sizes that its layer states."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from simprune.trace.layers import is_conv1d


def cut(model: nn.Module, tensor: str, dim: int, indices: Iterable[int]) -> None:
    """Remove entries of the parameter or buffer `tensor` along `dim`, also from its gradient; sizes follow.

    >>> layer = nn.Linear(4, 3)
    >>> cut(layer, "weight", 1, [0, 2])
    >>> layer
    Linear(in_features=2, out_features=3, bias=True)
    """
    name, _, attribute = tensor.rpartition(".")
    owner = model.get_submodule(name)
    old = getattr(owner, attribute)
    removed = set(indices)
    remaining = torch.tensor([i for i in range(old.shape[dim]) if i not in removed], device=old.device)
    if not isinstance(old, nn.Parameter):
        setattr(owner, attribute, old.index_select(dim, remaining))
        return
    new = nn.Parameter(old.detach().index_select(dim, remaining), requires_grad=old.requires_grad)
    if old.grad is not None:
        new.grad = old.grad.index_select(dim, remaining)
    setattr(owner, attribute, new)
    if attribute == "weight" and isinstance(owner, nn.Linear):
        owner.out_features, owner.in_features = new.shape
    elif attribute == "weight" and isinstance(owner, nn.LayerNorm | nn.RMSNorm):
        owner.normalized_shape = tuple(new.shape)
    elif attribute == "weight" and is_conv1d(owner):
        owner.nx, owner.nf = new.shape  # type: ignore[assignment]


def stored(model: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by its name.

    >>> stored(nn.BatchNorm1d(2), "running_mean")
    tensor([0., 0.])
    """
    owner, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(owner), attribute)
