"""Copies of modules: deep ones, also of those that keep computed tensors, and ones that share weights."""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)
IMMUTABLE = (bool, int, float, str, tuple, type(None))


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
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in plain}
    memo |= _computed(module)
    for part in module.modules():
        if _is_plain(part):
            memo[id(part)] = _plain_copy(part, memo)
    return copy.deepcopy(module, memo)


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


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is one of torch's own without parts, hooks or anything in it that could change.

    Nearly all modules are, and a deep copy of one takes a hundred times the time of `_plain_copy`.
    """
    if not type(module).__module__.startswith("torch.nn.modules.") or module._modules:
        return False
    for name, value in vars(module).items():
        if name in ("_parameters", "_buffers", "_non_persistent_buffers_set"):
            continue
        if isinstance(value, dict):
            if value:  # hooks
                return False
        elif not isinstance(value, IMMUTABLE) or (isinstance(value, tuple) and not all(map(_is_number, value))):
            return False
    tensors = [*module._parameters.values(), *module._buffers.values()]
    return all(value is None or type(value) in (nn.Parameter, Tensor) for value in tensors)


def _is_number(value: Any) -> bool:
    return isinstance(value, IMMUTABLE) and not isinstance(value, tuple)


def _plain_copy(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A copy of a plain module, with the tensors that `memo` has by identity; buffers are cloned, and added to it."""
    new = type(module).__new__(type(module))
    for name, value in vars(module).items():
        vars(new)[name] = value.copy() if isinstance(value, dict | set) else value
    for name, buffer in module._buffers.items():
        if buffer is not None:
            vars(new)["_buffers"][name] = memo.setdefault(id(buffer), buffer.clone())
    vars(new)["_parameters"].update((name, memo.get(id(p), p)) for name, p in module._parameters.items())
    return new


def _computed(module: nn.Module) -> dict[int, Any]:
    """Copies of the tensors with gradients that a module keeps in plain attributes, by identity."""
    attributes = [value for part in module.modules() for value in vars(part).values()]
    computed = [value for value in attributes if isinstance(value, Tensor) and value.grad_fn is not None]
    return {id(value): value.detach().clone() for value in computed}


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
