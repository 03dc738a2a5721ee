"""Residual blocks: modules that pass their input on when they add nothing, and so can be bypassed."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from simprune.batches import eval_mode, first_tensor
from simprune.cost import Example
from simprune.surgery.bypass import bypass


@dataclass(frozen=True)
class Block:
    """A module whose input can stand in for its output."""

    name: str
    kind: str = "block"


@dataclass
class _Visit:
    """What one module got and gave in one forward pass."""

    calls: int
    args: tuple
    kwargs: dict
    output: Any


def find_blocks(model: nn.Module, example: Example) -> tuple[list[Block], list[tuple[str, str]]]:
    """Blocks that can be bypassed, in order of execution, and residual modules that cannot, with the reason.

    A module is residual when, with all its parameters set to zero, it returns its input. Of nested candidates the
    innermost count. Every bypass is proven by a forward pass.
    """
    found: list[Block] = []
    refused: list[tuple[str, str]] = []
    visits = _visits(model, example)
    names = [name for name, visit in visits.items() if _is_residual(model.get_submodule(name), visit)]
    for name in names:
        if any(other != name and other.startswith(f"{name}.") for other in names):
            continue
        reason = _failure(model, example, name, visits[name])
        if reason is None:
            found.append(Block(name))
        else:
            refused.append((name, reason))
    return found, refused


def _visits(model: nn.Module, example: Example) -> dict[str, _Visit]:
    """One forward pass: composite modules with parameters, in order of execution."""
    visits: dict[str, _Visit] = {}
    handles = []

    def hook(name: str):
        def see(_: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            calls = visits[name].calls + 1 if name in visits else 1
            visits[name] = _Visit(calls, args, kwargs, output)

        return see

    for name, module in model.named_modules():
        if name and next(module.children(), None) is not None and next(module.parameters(), None) is not None:
            handles.append(module.register_forward_hook(hook(name), with_kwargs=True))
    try:
        args, kwargs = example
        with eval_mode(model), torch.no_grad():
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return visits


def _is_residual(module: nn.Module, visit: _Visit) -> bool:
    given, output = first_tensor(visit.args), visit.output
    if given is None or not isinstance(output, Tensor) or given.shape != output.shape or given.dtype != output.dtype:
        return False
    silent = copy.deepcopy(module)
    for parameter in silent.parameters():
        parameter.data.zero_()
    with eval_mode(silent), torch.no_grad():
        passed = silent(*visit.args, **visit.kwargs)
    return bool(torch.allclose(passed, given, rtol=1e-5, atol=1e-6 * (1 + float(given.abs().max()))))


def _failure(model: nn.Module, example: Example, name: str, visit: _Visit) -> str | None:
    if visit.calls > 1:
        return f"it runs {visit.calls} times in one forward pass"
    args, kwargs = example
    trial = copy.deepcopy(model)
    try:
        bypass(trial, name)
        with eval_mode(model, trial), torch.no_grad():
            before, after = first_tensor(model(*args, **kwargs)), first_tensor(trial(*args, **kwargs))
    except Exception as error:  # any failure of a foreign forward pass means the same: not safe to remove
        return f"the network fails without it ({(str(error).splitlines() or [type(error).__name__])[0][:120]})"
    if before is None or after is None or before.shape != after.shape:
        return "the network's output changes its shape without it"
    return None
