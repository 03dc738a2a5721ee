"""What every kind of structure promises: proven removal, exact cost, masked equals removed, the model left alone."""

import copy

import pytest
import torch

from simprune.api import apply
from simprune.core.example import describe
from simprune.core.plan import Edit, Plan, fingerprint
from simprune.core.registry import parts
from simprune.structures import structure
from simprune.trace.cost import cost_model, measure_cost
from simprune.trace.network import Network
from tests.networks import NAMES, build

KINDS = [(kind, name) for kind in parts("structure") for name in NAMES]


def edit_of(structure) -> Edit:
    """An edit that removes a part of the structure (all of a block, two channels of a group)."""
    if structure.kind == "block":
        return Edit("block", structure.name)
    units = (0, structure.size // 2) if structure.size > 2 else (0,)
    return Edit(structure.kind, structure.name, structure.expand(units), structure.width)


def plan_of(model, x, *edits) -> Plan:
    return Plan(edits, fingerprint(model), describe(((x[:2],), {})))


@pytest.mark.parametrize("kind, network", KINDS)
def test_every_found_structure_can_be_removed_at_its_stated_cost(kind, network):
    model, x = build(network)
    example = ((x[:2],), {})
    costs = cost_model(model, example)
    for removable in structure(kind).find(Network(model, example))[0]:
        edit = edit_of(removable)
        small = apply(plan_of(model, x, edit), model)
        assert small(x).shape == model(x).shape
        cut = (
            {}
            if removable.kind == "block"
            else removable.cut([u for u, entries in enumerate(removable.units) if set(entries) <= set(edit.indices)])
        )
        dropped = [removable.name] if removable.kind == "block" else []
        assert measure_cost(small, example) == costs.after(cut, dropped) != costs.total()


@pytest.mark.parametrize("kind, network", KINDS)
def test_finding_leaves_the_model_as_it_was(kind, network):
    model, x = build(network)
    model.train()
    next(model.parameters()).requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    structure(kind).find(Network(model, ((x[:2],), {})))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert [p.requires_grad for p in model.parameters()].count(False) == 1
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("kind, network", KINDS)
def test_what_is_refused_has_a_reason(kind, network):
    model, x = build(network)
    _, refused = structure(kind).find(Network(model, ((x[:2],), {})))
    assert all(name in dict(model.named_modules()) and len(reason) > 10 for name, reason in refused)
    if kind == "channels":
        output = "fc2" if network == "Flat" else "head"
        assert dict(refused)[output] == "its output is the network's output"
