"""Apply a plan: torch-pruning makes the edits on a copy, and the copy is checked against the prediction."""

import copy

import torch
from torch import nn

from simprune.core.batches import device_of, first_tensor
from simprune.core.cost import Example
from simprune.core.example import from_description
from simprune.core.plan import Plan
from simprune.core.structures import NotPrunable
from simprune.edit.compact import compact
from simprune.edit.configuration import restate
from simprune.edit.effects import Effects, effects_of
from simprune.edit.stand_ins import stand_in
from simprune.structures.heads import remove_heads
from simprune.trace.attention import attentions
from simprune.trace.bypass import install
from simprune.trace.context import eval_mode
from simprune.trace.cost import cost_model
from simprune.trace.coupling import CouplingGraph
from simprune.trace.visits import visit


def apply(plan: Plan, model: nn.Module) -> nn.Module:
    """A new, smaller module; `model` keeps its weights and mode.

    Blocks are bypassed first, then channels go; the result runs once in evaluation and once in training mode, and its
    tensor shapes and multiply-adds must equal what the plan implies. Layers in a counted list, as in transformers,
    are deleted from it at last (see `surgery.compact`). Raises ValueError when the plan does not fit the model or an
    edit cannot be made.
    """
    plan.check(model)
    example = from_description(plan.inputs, device_of(model))
    small = copy.deepcopy(model)
    effects = effects_of(plan, small, example)
    _take_out(plan, small, example)
    layouts = attentions(small)
    for edit in plan.heads:
        remove_heads(small, layouts[edit.name], edit.indices)
    try:
        graph = CouplingGraph(small, example) if any(plan.channels) else None
        for edit in plan.channels:
            assert graph is not None
            graph.prune(_living(edit.name, effects, graph), sorted(edit.indices))
    except NotPrunable as reason:
        raise ValueError(f"plan: {reason}") from None
    _verify(small, model, effects, example)
    _delete(small, example)
    restate(small)
    return small


def _take_out(plan: Plan, small: nn.Module, example: Example) -> None:
    visits = visit(small, example) if plan.blocks else {}
    for edit in plan.whole:
        if edit.name not in visits:
            raise ValueError(f"plan: {edit.name} does not run, or has no parameters; delete its edit")
        seen = visits[edit.name]
        try:
            install(small, edit.name, stand_in(edit.replace, seen.layout(), seen.given))
        except ValueError as reason:
            raise ValueError(f"plan: {edit.name} cannot be removed: {reason}") from None


def _delete(small: nn.Module, example: Example) -> None:
    """Shorten counted lists of layers, if the network's output stays what it was."""
    args, kwargs = example
    with eval_mode(small), torch.no_grad():
        before = first_tensor(small(*args, **kwargs))
        if not compact(small):
            return
        after = first_tensor(small(*args, **kwargs))
    if before is None or after is None or not torch.allclose(before, after, rtol=1e-4, atol=1e-5):
        raise ValueError(
            "edit failed: the network depends on its layers' numbers, so none can be deleted from its list"
        )


def _living(name: str, effects: Effects, graph: CouplingGraph) -> str:
    """A layer that produces the edited channels and is still there (the named one may be in a removed block)."""
    for layer in (name, *effects.producers[name]):
        if not effects.inside_dropped(layer) and graph.is_root(layer):
            return layer
    raise ValueError(f"plan: every layer that makes the channels of {name} is removed; delete the edit of {name}")


def _verify(small: nn.Module, model: nn.Module, effects: Effects, example: Example) -> None:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if effects.inside_dropped(name):
            continue
        shape = [size - effects.cut.get((name, dim), 0) for dim, size in enumerate(tensor.shape)]
        actual = small.get_parameter(name) if isinstance(tensor, nn.Parameter) else small.get_buffer(name)
        if list(actual.shape) != shape:
            raise ValueError(f"edit failed: {name} should have shape {shape} and has {list(actual.shape)}")
    args, kwargs = example
    trial = copy.deepcopy(small)  # training mode moves BatchNorm statistics
    with torch.no_grad():
        with eval_mode(model, small):
            before, after = first_tensor(model(*args, **kwargs)), first_tensor(small(*args, **kwargs))
        trial.train()  # not every module's returns itself
        trial(*args, **kwargs)
    if before is None or after is None or before.shape != after.shape:
        raise ValueError("edit failed: the network's output changed its shape; the plan reaches the output layer")
    planned = cost_model(model, example).after(effects.cut, effects.dropped)
    actual_cost = cost_model(small, example).after(dropped=effects.dropped)  # without what stands in for blocks
    if planned != actual_cost:
        raise ValueError(f"edit failed: planned cost {planned} but the network costs {actual_cost}")
