"""Why a network fails without some of its units, in words: where its forward pass stops, and what it would take."""

import linecache
from pathlib import Path
from types import CodeType, FrameType

from torch import Tensor, nn

from simprune.core.blame import forward_of
from simprune.core.structures import UnitGroup

LINE = 60  # characters of a line of code that are shown
TOLD = 4  # numbers below it stand in most code, and say nothing


def failure(error: Exception, model: nn.Module, group: UnitGroup) -> str:
    """The reason for which units stay without which the network fails.

    Args:
        error: that a copy without some of the units raised.
        model: the original.
        group: of the units.

    >>> import torch
    >>> class Shifted(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.first, self.by = nn.Conv2d(3, 8, 1), nn.Parameter(torch.zeros(8, 5, 5))
    ...     def forward(self, x):
    ...         return self.first(x) + self.by
    >>> cut = Shifted()
    >>> cut.first = nn.Conv2d(3, 7, 1)
    >>> try:
    ...     cut(torch.zeros(1, 3, 5, 5))
    ... except RuntimeError as error:
    ...     print(failure(error, Shifted(), UnitGroup("first", 8, ())).partition(": ")[2])
    by has an entry for each of them, or more; make it part of a layer, such as a depthwise convolution
    """
    stopped, without = forward_of(error), f"without one of its {group.kind} "
    if stopped is None:
        return f"{without}the network fails ({kind_of(error)} in its forward pass)"
    name, frame = stopped
    first = next((frame.f_locals.get(argument) for argument in frame.f_code.co_varnames), None)
    module = first if isinstance(first, nn.Module) else dict(model.named_modules()).get(name, model)
    cause = _cause(frame.f_code, module, {group.size, group.width})
    return f"{without}{name or 'the network'} fails ({_line(frame)}): {cause}"


def _cause(code: CodeType, module: nn.Module, widths: set[int]) -> str:
    """What stays as wide as before, as far as the code and the module that runs it tell, and the remedy."""
    values = {**vars(module), **module._parameters, **module._buffers}
    read = {name: values[name] for name in code.co_names if name in values}
    for name, value in read.items():
        if isinstance(value, Tensor) and widths & set(value.shape):
            known = name in module._parameters or name in module._buffers
            remedy = "make it part of a layer, such as a depthwise convolution" if known else "register it as a buffer"
            return f"{name} has an entry for each of them, or more; {remedy}"
    stated = [f"self.{name} = {value}" for name, value in read.items() if _tells(value, widths)]
    stated += [str(value) for value in code.co_consts if _tells(value, widths)]
    if stated:
        return f"it says how many there are ({stated[0]}); read the number off a tensor, as in x.shape[1]"
    return "it needs as many as before, multiples of a number, or fixed parts; read sizes off tensors, as in x.shape[1]"


def _tells(value: object, widths: set[int]) -> bool:
    return type(value) is int and value >= TOLD and value in widths


def _line(frame: FrameType) -> str:
    """File and line of a frame, and its code where the source is there."""
    file, number = frame.f_code.co_filename, frame.f_lineno
    text = linecache.getline(file, number).strip()
    text = text if len(text) <= LINE else f"{text[:LINE].rstrip()} ..."
    return f"{Path(file).name}, line {number}" + (f", `{text}`" if text else "")


def kind_of(error: Exception) -> str:
    """What kind of error it is; its message would speak of what users have not written.

    >>> kind_of(RuntimeError("mat1 and mat2 shapes cannot be multiplied")), kind_of(ArithmeticError())
    ('a RuntimeError', 'an ArithmeticError')
    """
    name = type(error).__name__
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
