"""The weights that produce the units of a group, one row per unit."""

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor, nn

from simprune.core.structures import Slice

ENTRIES = 2**22  # of weights in double precision that are looked at together


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
    rows = tensor.detach().movedim(dim, 0)
    units = [rows[list(entries)].double().cpu().flatten() for entries in indices]
    return nn.utils.rnn.pad_sequence(units, batch_first=True)


def parts_of_unit_rows(tensor: Tensor, dim: int, indices: Sequence[Sequence[int]]) -> Iterator[Tensor]:
    """The rows of `unit_rows`, a few units at a time, for what looks at every unit by itself.

    >>> import torch
    >>> [part.shape for part in parts_of_unit_rows(torch.zeros(3, 2**22), 0, [(0,), (1,), (2,)])]
    [torch.Size([1, 4194304]), torch.Size([1, 4194304]), torch.Size([1, 4194304])]
    """
    width = max(1, tensor.numel() // tensor.shape[dim] * max(map(len, indices), default=1))
    step = max(1, ENTRIES // width)
    for start in range(0, len(indices), step):
        yield unit_rows(tensor, dim, indices[start : start + step])


def weight_slices(model: nn.Module, slices: Iterable[Slice]) -> list[Slice]:
    """The slices of a group that belong to weights of layers which produce its units, not to normalisations."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    outs = [part for part in slices if part.side == "out" and part.tensor in parameters]
    return [part for part in outs if parameters[part.tensor].ndim > 1]
