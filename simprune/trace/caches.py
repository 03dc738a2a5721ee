"""What modules keep of a forward pass in plain attributes is given up when our pass is over.

Such tensors, as timm's LeViT keeps its attention biases, would stay behind in the user's model: from a pass with
gradients they cannot be copied, from one in inference mode they cannot be trained with.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

OWN = frozenset(vars(nn.Module()))  # parameters, buffers, hooks: not plain


@contextmanager
def forgetting(*models: nn.Module) -> Iterator[None]:
    """For a while modules may keep tensors in attributes, and in lists and dicts there; then these are as before."""
    modules = {module: None for model in models for module in model.modules()}
    before = {module: {name: (value, _contents(value)) for name, value in _plain(module)} for module in modules}
    try:
        yield
    finally:
        for module, known in before.items():
            for name, value in _plain(module):
                if not _holds_tensors(value):
                    continue
                if name not in known:
                    delattr(module, name)
                    continue
                old, contents = known[name]
                if old is not value:
                    setattr(module, name, old)
                if isinstance(contents, dict):
                    old.clear()
                    old.update(contents)
                elif isinstance(contents, list):
                    old[:] = contents


def _plain(module: nn.Module) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in vars(module).items() if name not in OWN]


def _contents(value: Any) -> dict | list | None:
    return value.copy() if type(value) in (dict, list) else None


def _holds_tensors(value: Any) -> bool:
    inside = value.values() if type(value) is dict else value if type(value) in (list, tuple) else (value,)
    return any(isinstance(each, Tensor) and not isinstance(each, nn.Parameter) for each in inside)
