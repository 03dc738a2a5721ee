"""What modules store in plain attributes during our forward passes is removed afterwards.

timm's LeViT stores its attention biases in that way, and the heads of Ultralytics' YOLO their anchors, beside the shape
of the maps that these are for. Such tensors would stay behind in the user's model. A model that stores a tensor with
gradients cannot be deep-copied, and one that stores a tensor of inference mode cannot be trained.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

OWN = frozenset(vars(nn.Module()))  # parameters, buffers, hooks: not plain


@contextmanager
def forgetting(*models: nn.Module) -> Iterator[None]:
    """After the block, modules that stored a tensor have the plain attributes from before it, lists and dicts as well.

    All attributes of such a module, because another one often says what the tensor is for.
    """
    modules = {module: None for model in models for module in model.modules()}
    before = {module: {name: (value, _contents(value)) for name, value in _plain(module)} for module in modules}
    try:
        yield
    finally:
        for module, attributes in before.items():
            now = _plain(module)
            if not any(_holds_tensors(value) and not _is_as_before(value, attributes.get(name)) for name, value in now):
                continue
            for name, _ in now:
                if name not in attributes:
                    delattr(module, name)
            for name, (value, contents) in attributes.items():
                if name not in vars(module) or vars(module)[name] is not value:
                    setattr(module, name, value)
                if isinstance(contents, dict):
                    value.clear()
                    value.update(contents)
                elif isinstance(contents, list):
                    value[:] = contents


def _plain(module: nn.Module) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in vars(module).items() if name not in OWN]


def _contents(value: Any) -> dict | list | None:
    return value.copy() if type(value) in (dict, list) else None


def _is_as_before(value: Any, before: tuple[Any, Any] | None) -> bool:
    """Whether an attribute is the object that it was, with the same contents."""
    if before is None or before[0] is not value:
        return False
    return before[1] is None or [id(item) for item in _inside(value)] == [id(item) for item in _inside(before[1])]


def _holds_tensors(value: Any) -> bool:
    return any(isinstance(item, Tensor) and not isinstance(item, nn.Parameter) for item in _inside(value))


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if type(value) is dict else value if type(value) in (list, tuple) else (value,)
