"""Channels that are split, gated or shuffled on their way: the whole path, by laws."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import simprune as sp
from simprune import bundle
from simprune.core.example import example_of
from simprune.core.structures import UnitGroup
from simprune.edit.effects import effects_of
from simprune.trace.cost import measure_cost
from simprune.trace.network import Network
from tests.architectures.rearranging import MIDDLES, NETWORKS, make

# layers that were refused because of what happens behind them, and the number of channels that go together
COUPLED = {
    **{name: ("first", {"three_parts": 3, "pixel_unshuffle": 1, "two_shuffles": 6}.get(name, 2)) for name in MIDDLES},
    **{"pixel_shuffle": ("first", 4), "depth_to_space": ("first", 4), "shuffle": ("first", 3)},
    "c2f_chunk": ("blocks.0.cv1.0", 2),
    "c2f_split": ("blocks.0.cv1.0", 2),
    "gated_depthwise": ("blocks.0.project_in", 2),
    "shuffle_units": ("blocks.0.branch.0.0", 1),
    "shuffled_groups": ("blocks.0.first", 4),
    "multiplied": ("stem.0", 1),
    "multiplied_inputs": ("middle.wide", 3),
    "mixer": ("stem", 1),
    "spatial_gate": ("blocks.0.up", 2),
    "scalar_prelu": ("second", 1),
    "gated_tokens": ("fused", 2),
    "decoder": ("inner", 16),
}
MIXING = {"mixer": {"blocks.0.tokens.2"}, "spatial_gate": {"blocks.0.gate"}}  # layers whose outputs are positions


def masked(model: nn.Module, plan, groups: list[UnitGroup]) -> nn.Module:
    """The original, with readers that ignore what the plan removes."""
    model, by_name = copy.deepcopy(model), {group.name: group for group in groups}
    for edit in plan.of_kind("channels"):
        group, gone = by_name[edit.name], set(edit.indices)
        units = [unit for unit, channels in enumerate(group.units) if gone.issuperset(channels)]
        for part in group.slices:
            if part.side == "in":
                index = torch.tensor([entry for unit in units for entry in part.indices[unit]])
                model.get_parameter(part.tensor).data.index_fill_(part.dim, index, 0.0)
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_the_whole_path(name, tmp_path):
    model, state = make(name), make(name).state_dict()
    torch.manual_seed(1)
    calibration = [torch.randn(8, 3, 8, 8) for _ in range(2)]
    example = example_of(calibration[0])
    attributes = [{k: v for k, v in vars(module).items() if type(v) is int} for module in model.modules()]

    redundancy = sp.analyze(model, calibration, structures=["channels"])
    groups = [entry.group for entry in redundancy.channels]
    layer, together = COUPLED[name]
    assert {len(unit) for group in groups if group.name == layer for unit in group.units} == {together}
    assert {refused for refused, _ in redundancy.unprunable} == {"head", *MIXING.get(name, ())}

    plan = sp.plan(redundancy, {"macs": 0.6})
    small = sp.apply(plan, model)
    network = Network(model, example)
    assert network.costs.after(effects_of(plan, network).cut) == measure_cost(small, example)
    assert measure_cost(small, example).macs <= 0.6 * measure_cost(model, example).macs
    with torch.no_grad():
        torch.testing.assert_close(
            small(calibration[0]), masked(model, plan, groups)(calibration[0]), rtol=1e-4, atol=1e-5
        )

    assert sp.reconstruct(small, plan, model, calibration)
    small.train()(calibration[0]).sum().backward()
    output = small.eval()(calibration[0])
    torch.testing.assert_close(torch.export.export(small, (calibration[0],)).module()(calibration[0]), output)
    bundle.save(tmp_path / "small", SimpleNamespace(model=small, plan=plan, report={"simprune": "0.1.0", "stages": []}))
    loaded = bundle.load(tmp_path / "small", lambda: make(name))
    assert torch.equal(loaded.eval()(calibration[0]), output)

    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert [{k: v for k, v in vars(module).items() if type(v) is int} for module in model.modules()] == attributes
