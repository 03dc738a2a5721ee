"""Applying a plan to a copy of the original, and checking the copy against the prediction of the plan's effects."""

from collections.abc import Mapping
from itertools import chain

import torch
from torch import Tensor, nn

from simprune.core.batches import all_tensors
from simprune.core.blame import failing_module, with_line
from simprune.core.copies import sharing, unshare
from simprune.core.cost import Example
from simprune.core.plan import Plan
from simprune.core.structures import NotPrunable
from simprune.edit.compact import compact, keep_stand_ins
from simprune.edit.configuration import restate
from simprune.edit.effects import Effects, effects_of
from simprune.edit.stand_ins import stand_in
from simprune.structures import unit_structures
from simprune.structures.proof import same_shapes
from simprune.trace.bypass import install
from simprune.trace.context import eval_mode
from simprune.trace.cost import cost_model
from simprune.trace.network import Network
from simprune.trace.rewritten import with_rules
from simprune.trace.training_mode import training_error


def apply(plan: Plan, network: Network, effects: Effects | None = None) -> nn.Module:
    """A new, smaller module; the network's model is not changed.

    Blocks are bypassed first, then units are removed, channels last. The result runs once in evaluation mode, and once
    in training mode if the original does, and its tensor shapes and cost must equal the plan's. At last, layers in a
    counted list, as in transformers, are deleted from the list (see `simprune.edit.compact`).

    Args:
        plan: the plan.
        network: the original.
        effects: of the plan, if they are known.

    Returns:
        The smaller model.

    Raises:
        ValueError: when the plan does not fit the model, an edit cannot be made, or the result is not as planned.
    """
    plan.check(network.source)
    small = sharing(network.model)
    effects = effects_of(plan, network) if effects is None else effects
    _bypass_blocks(plan, small, network)
    try:
        for kind, structure in unit_structures().items():
            edits = [(_producers(edit.name, effects), edit.indices) for edit in plan.of_kind(kind)]
            if edits:
                structure.remove(small, network.example, edits)
    except NotPrunable as reason:
        raise ValueError(f"plan: {reason}") from None
    try:
        output = _verify(small, network, effects)
    except Exception as error:  # a foreign forward pass may raise anything
        if (module := failing_module(error)) is None:
            raise
        edited = ", ".join(dict.fromkeys(edit.name for edit in plan.edits))
        where = f"in {module}" if module else "in its own forward pass"
        raise ValueError(
            f"plan: the network does not run without what the edits of {edited} remove: {with_line(error)}, {where}; "
            "delete one of these edits, or keep these modules (exclude)"
        ) from error
    with_rules(small, network.source, effects.removed, effects.dropped)
    _delete(small, network.example, output)
    restate(small, network.example)
    unshare(small, network.model)
    return small


def _bypass_blocks(plan: Plan, small: nn.Module, network: Network) -> None:
    """Replace every block that the plan removes by its stand-in; ValueError for one that cannot be removed."""
    for edit in plan.whole:
        if edit.name not in network.visits:
            raise ValueError(f"plan: {edit.name} does not run, or has no parameters; delete its edit")
        visit = network.visits[edit.name]
        try:
            axis = network.axes.of(edit.name, "output")
            install(small, edit.name, stand_in(edit.replace, visit.layout(), visit.input, axis))
        except ValueError as reason:
            raise ValueError(f"plan: {edit.name} cannot be removed: {reason}") from None


def _producers(name: str, effects: Effects) -> list[str]:
    """Layers that produce the units of an edit and are not in a removed block, the named one first."""
    layers = [layer for layer in (name, *effects.producers[name]) if not effects.inside_dropped(layer)]
    if not layers:
        raise ValueError(f"plan: every layer that makes the channels of {name} is removed; delete the edit of {name}")
    return layers


def _delete(small: nn.Module, example: Example, before: Mapping[str, Tensor]) -> None:
    """Shorten counted lists of layers, unless that changes the network's outputs, which are `before` now."""
    if not compact(small):
        return
    args, kwargs = example
    try:
        with eval_mode(small), torch.no_grad():
            after = all_tensors(small(*args, **kwargs))
    except Exception:  # a foreign forward pass that depends on its layers' numbers may raise anything
        keep_stand_ins(small)
        return
    pairs = ((old, new) for name, value in before.items() for old, new in zip(value, after[name], strict=True))
    if not all(torch.allclose(old, new, rtol=1e-4, atol=1e-5) for old, new in pairs):
        keep_stand_ins(small)


def _verify(small: nn.Module, network: Network, effects: Effects) -> dict[str, Tensor]:
    """The outputs of the small network on the example.

    Raises ValueError unless shapes, shapes of outputs and cost are as planned; a pass in training mode must work where
    the original's does.
    """
    model, cut, (args, kwargs) = network.model, effects.cut, network.example
    actual = dict(chain(small.named_parameters(remove_duplicate=False), small.named_buffers(remove_duplicate=False)))
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        shape = [size - cut.get((name, dim), 0) for dim, size in enumerate(tensor.shape)]
        if effects.inside_dropped(name) or (tensor.numel() and 0 in shape):  # it goes whole
            continue
        now = effects.name_now(name)
        if list(actual[now].shape) != shape:
            raise ValueError(f"edit failed: {now} should have shape {shape} and has {list(actual[now].shape)}")
    with torch.no_grad(), eval_mode(small):
        before, after = network.outputs, all_tensors(small(*args, **kwargs))
    error = training_error(sharing(small), network.example) if network.trains else None
    if error is not None:
        raise error
    if not before or not same_shapes(before, after):
        raise ValueError("edit failed: the network's output changed its shape; the plan reaches the output layer")
    planned = network.costs.after(cut, effects.dropped)
    cost = cost_model(small, network.example).after(dropped=effects.dropped)  # without stand-ins
    if planned != cost:
        raise ValueError(f"edit failed: planned cost {planned} but the network costs {cost}")
    return after
