"""The weights that produce the units of a group, one row per unit."""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from simprune.core.structures import Slice


def unit_rows(tensor: Tensor, dim: int, indices: Sequence[Sequence[int]]) -> Tensor:
    """Entries of a tensor as one row per unit, (units, features), in float64 on the CPU.

    Args:
        tensor: a parameter.
        dim: its dimension along which the units lie.
        indices: entries of every unit along `dim`; rows of units with fewer entries end with zeros.

    >>> import torch
    >>> unit_rows(torch.arange(6).view(3, 2), 0, [(0, 2), (1,)])
    tensor([[0., 1., 4., 5.],
            [2., 3., 0., 0.]], dtype=torch.float64)
    """
    rows = tensor.detach().double().cpu().movedim(dim, 0).flatten(1)
    return nn.utils.rnn.pad_sequence([rows[list(entries)].flatten() for entries in indices], batch_first=True)


def weight_slices(model: nn.Module, slices: Iterable[Slice]) -> list[Slice]:
    """The slices of a group that belong to weights of layers which produce its units, not to normalisations."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    outs = [part for part in slices if part.side == "out" and part.tensor in parameters]
    return [part for part in outs if parameters[part.tensor].ndim > 1]
