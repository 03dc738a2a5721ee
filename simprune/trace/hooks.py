"""The one place that registers hooks on modules, and removes them."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

Before = Callable[[nn.Module, tuple, dict], Any]  # (module, args, kwargs); new (args, kwargs), or None to leave them
After = Callable[[nn.Module, tuple, dict, Any], Any]  # (module, args, kwargs, output); a new output, or None


@contextmanager
def hooks(
    before: Iterable[tuple[nn.Module, Before]] = (), after: Iterable[tuple[nn.Module, After]] = ()
) -> Iterator[None]:
    """Within the block, functions run before and after modules; the hooks are removed at its end, also after an error.

    Args:
        before: modules with functions of (module, args, kwargs).
        after: modules with functions of (module, args, kwargs, output).

    >>> import torch
    >>> layer, shapes = nn.Linear(2, 3), []
    >>> with hooks(after=[(layer, lambda module, args, kwargs, output: shapes.append(tuple(output.shape)))]):
    ...     output = layer(torch.zeros(4, 2))
    >>> shapes, len(layer._forward_hooks)
    ([(4, 3)], 0)
    """
    with ExitStack() as stack:
        for module, function in before:
            stack.callback(module.register_forward_pre_hook(function, with_kwargs=True).remove)
        for module, function in after:
            stack.callback(module.register_forward_hook(function, with_kwargs=True).remove)
        yield
