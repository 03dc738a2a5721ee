"""Take a block out: its input goes on in its place."""

from typing import Any

from torch import Tensor, nn


class Bypass(nn.Module):
    """Returns its first input; further arguments of the block that was here are ignored.

    >>> Bypass()("x", mask=None)
    'x'
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x


def bypass(model: nn.Module, name: str) -> None:
    """Replace the module `name` in place."""
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, Bypass())
