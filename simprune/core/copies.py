"""Deep copies of modules, also of those that keep computed tensors."""

import copy
from typing import TypeVar

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
    attributes = [value for part in module.modules() for value in vars(part).values()]
    computed = [value for value in attributes if isinstance(value, Tensor) and value.grad_fn is not None]
    return copy.deepcopy(module, {id(value): value.detach().clone() for value in computed})
