"""Layers before and after a plan: what is said is what the edited network has."""

import pytest

import simprune as sp
from simprune.edit.layer_changes import layer_changes
from simprune.trace.layers import output_dim
from simprune.trace.network import Network
from tests.networks import build


@pytest.mark.parametrize("name", ["Residual", "Flat"])
def test_shapes_and_costs_are_those_of_the_edited_network(name):
    model, x = build(name)
    plan = sp.plan(sp.analyze(model, [x]), budget={"macs": 0.4})
    small, network = sp.apply(plan, model), Network.trace(model, x)
    layers = layer_changes(plan, network)
    tensors = Network.trace(small, x).costs.tensors
    assert any(layer["shape"][0] != layer["shape"][1] for layer in layers)
    for layer in layers:
        shape, width = layer["shape"][1], layer["width"][1]
        weight = tensors.get(f"{layer['name']}.weight")
        assert shape == (None if weight is None else [*weight.shape])
        if weight is not None:
            assert width == shape[output_dim(small.get_submodule(layer["name"]))]
            assert layer["params"][1] == sum(p.numel() for p in small.get_submodule(layer["name"]).parameters())
        else:
            assert layer["macs"][1] == layer["params"][1] == 0
    original, cost = network.costs.total(), Network.trace(small, x).costs.total()
    assert [sum(layer["macs"][state] for layer in layers) for state in (0, 1)] == [original.macs, cost.macs]
