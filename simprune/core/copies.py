"""Copies of modules: deep ones, also of those that keep computed tensors, and ones that share weights."""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def copy_of(module: Module) -> Module:
    """A deep copy of a module.

    Tensors that a hook computes before every pass, such as a weight under a mask of `torch.nn.utils.prune`, are copied
    as they are now; torch alone refuses to copy a tensor with gradients.

    Args:
        module: which stays as it is.

    >>> from torch.nn.utils import prune
    >>> masked = prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5)
    >>> bool((copy_of(masked).weight == masked.weight).all())
    True
    """
    return copy.deepcopy(module, _computed(module))


def sharing(module: Module) -> Module:
    """A copy of a module whose parameters lie in the memory of the module's own, so that it takes hardly any.

    Parts of it can be replaced, and parameters by others, as edits do. Nobody may write into its parameters: `unshare`
    gives it weights of its own first. Buffers are copied, because forward passes change them.

    Args:
        module: which stays as it is.

    >>> layer = nn.Linear(4, 4)
    >>> copy = sharing(layer)
    >>> copy.weight is layer.weight, copy.weight.data_ptr() == layer.weight.data_ptr()
    (False, True)
    """
    plain = [parameter for parameter in module.parameters() if type(parameter) is nn.Parameter]
    shared = {id(value): nn.Parameter(value.detach(), requires_grad=value.requires_grad) for value in plain}
    return copy.deepcopy(module, _computed(module) | shared)


def unshare(module: nn.Module, original: nn.Module) -> None:
    """Copy the parameters that lie in the memory of the original's, in place; tied parameters stay tied.

    >>> layer = nn.Linear(4, 4)
    >>> copy = sharing(layer)
    >>> unshare(copy, layer)
    >>> copy.weight.data_ptr() == layer.weight.data_ptr()
    False
    """
    memory = {_memory(parameter) for parameter in original.parameters()}
    for parameter in module.parameters():
        if _memory(parameter) in memory:
            parameter.data = parameter.detach().clone()


def release(module: nn.Module) -> None:
    """Give back the memory of a copy that is of no use any more, and that circles of references would hold for a while.

    The copy cannot run afterwards. Whoever shares its memory keeps it.

    >>> layer = nn.Linear(4, 4)
    >>> copy = sharing(layer)
    >>> release(copy)
    >>> copy.weight.numel(), layer.weight.numel()
    (0, 16)
    """
    for parameter in module.parameters():
        parameter.data = parameter.data.new_empty(0)


def fill(parameter: nn.Parameter, value: float) -> None:
    """Make all entries of a parameter one number, which is stored once."""
    parameter.requires_grad_(False)
    whole = parameter.shape if parameter.ndim == 3 else ()  # grouped products of experts refuse an expanded number
    parameter.data = torch.full(whole, value, dtype=parameter.dtype, device=parameter.device).expand(parameter.shape)


def _computed(module: nn.Module) -> dict[int, Any]:
    """Copies of the tensors with gradients that a module keeps in plain attributes, by identity."""
    attributes = [value for part in module.modules() for value in vars(part).values()]
    computed = [value for value in attributes if isinstance(value, Tensor) and value.grad_fn is not None]
    return {id(value): value.detach().clone() for value in computed}


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
