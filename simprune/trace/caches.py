"""Tensors that modules store in plain attributes during our forward passes are removed afterwards.

timm's LeViT stores its attention biases in that way. Such tensors would stay behind in the user's model. A model that
stores a tensor with gradients cannot be deep-copied, and one that stores a tensor of inference mode cannot be trained.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

OWN = frozenset(vars(nn.Module()))  # parameters, buffers, hooks: not plain


@contextmanager
def forgetting(*models: nn.Module) -> Iterator[None]:
    """After the block, attributes that hold tensors, or lists and dicts of tensors, are as they were before it."""
    modules = {module: None for model in models for module in model.modules()}
    before = {module: {name: (value, _contents(value)) for name, value in _plain(module)} for module in modules}
    try:
        yield
    finally:
        for module, attributes in before.items():
            for name, value in _plain(module):
                if not _holds_tensors(value):
                    continue
                if name not in attributes:
                    delattr(module, name)
                    continue
                old, contents = attributes[name]
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
    return any(isinstance(item, Tensor) and not isinstance(item, nn.Parameter) for item in inside)
