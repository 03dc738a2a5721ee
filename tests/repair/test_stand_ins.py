"""What stands in for a block: fitted maps, deleted layers that come back for a repair."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import simprune as sp
from simprune.api import apply, reconstruct
from simprune.core.batches import call
from simprune.core.example import describe, example_of, from_description
from simprune.core.plan import Edit, Plan, fingerprint
from simprune.edit.compact import restored
from simprune.edit.stand_ins import Mapped
from simprune.repair.recovery import Recovery
from simprune.repair.stand_ins import fit_stand_ins
from simprune.trace.cost import measure_cost
from simprune.trace.network import Network
from tests.networks import build as small_network
from tests.structures.architectures import BLOCKS, build


class Affine(nn.Module):
    """A block that is exactly x + W x + b, over tokens or maps."""

    def __init__(self, maps: bool) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(6, 6, 1) if maps else nn.Linear(6, 6))

    def forward(self, x):
        return x + self.branch(x)


def affine(maps: bool):
    torch.manual_seed(0)
    model = nn.Sequential(Affine(maps), Affine(maps), nn.Conv2d(6, 3, 1) if maps else nn.Linear(6, 3)).eval()
    x = torch.randn(60, 6, 4, 4) if maps else torch.randn(60, 5, 6)
    return model, x


def plan_of(model, batch, *edits):
    return Plan(edits, fingerprint(model), describe(example_of(batch)))


@pytest.mark.parametrize("maps", [True, False])
def test_a_linear_block_is_replaced_exactly_and_a_mean_is_its_best_constant(maps):
    model, x = affine(maps)
    errors = {}
    for replace in ("identity", "mean", "linear"):
        plan = plan_of(model, x, Edit("block", "0", replace=replace))
        assert Plan.from_yaml(plan.to_yaml()) == plan
        small = apply(plan, model)
        fit_stand_ins(small, plan, Network(model, from_description(plan.inputs)), [x])
        errors[replace] = float((small[0](x) - model[0](x)).square().mean().detach())
    assert errors["linear"] < 1e-6
    assert errors["linear"] < errors["mean"] < errors["identity"]
    shift = (model[0](x) - x).flatten(2).mean((0, 2)) if maps else (model[0](x) - x).mean((0, 1))
    small = apply(plan_of(model, x, Edit("block", "0", replace="mean")), model)
    fit_stand_ins(small, plan_of(model, x, Edit("block", "0", replace="mean")), Network.trace(model, [x][0]), [x])
    torch.testing.assert_close(small[0].shift, shift.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("maps", [True, False])
@pytest.mark.parametrize("replace", ["linear", "mean"])
def test_a_map_follows_the_channels_that_stay(maps, replace):
    model, x = small_network("Residual") if maps else build("pre-norm")
    redundancy = sp.analyze(model, [x], structures=("blocks", "channels"))
    block = redundancy.blocks[-1].name
    inner = {entry.name for entry in redundancy.channels if entry.name.startswith(f"{block}.")}
    stream = [entry for entry in redundancy.channels if entry.name not in inner and _reaches(entry.group, block)]
    entry = max(stream, key=lambda entry: entry.group.width)
    gone = entry.group.expand([0, 2])
    plan = plan_of(
        model, x, Edit("block", block, replace=replace), Edit("channels", entry.name, gone, entry.group.width)
    )
    small = apply(plan, model)
    fit_stand_ins(small, plan, Network(model, from_description(plan.inputs)), [x])
    module = small.get_submodule(block)
    with torch.no_grad():
        entering, leaving = [], []

        def see(_, args, output):
            entering.append(args[0].clone())
            leaving.append(output.clone())

        handle = model.get_submodule(block).register_forward_hook(see)
        call(model, x)
        handle.remove()
        dim = 1 if entering[0].ndim == 4 else -1
        stay = torch.tensor([index for index in range(entering[0].shape[dim]) if index not in gone])
        inputs = entering[0].index_select(dim, stay)
        rows, wanted = (
            value.movedim(dim, -1).flatten(0, -2).double() for value in (inputs, leaving[0].index_select(dim, stay))
        )
        actual = module(inputs).movedim(dim, -1).flatten(0, -2).double()
        if replace == "mean":
            expected = rows + (wanted - rows).mean(0)
        else:
            table = torch.cat([rows, torch.ones(len(rows), 1)], 1)
            expected = table @ torch.linalg.lstsq(table, wanted).solution
        best, error = ((value - wanted).square().mean() for value in (expected, actual))
        assert error <= 1.01 * best + 1e-6


@pytest.mark.parametrize("replace", ["identity", "linear", "mean"])
@pytest.mark.parametrize("name", ["resnet", "bert"])
def test_the_plan_counts_what_stands_in(name, replace):
    model, batch = build(name)
    plan = sp.plan(sp.analyze(model, [batch], structures=["blocks"], replace=replace), {"macs": 0.9})
    assert [edit.replace for edit in plan.whole] == [replace] * len(plan.blocks)
    stays = name == "bert" and replace != "identity"  # no configuration of transformers says what stands in
    with pytest.warns(UserWarning, match="from_pretrained cannot open") if stays else nullcontext():
        small = apply(plan, model)
    measured = measure_cost(small, example_of(batch)).to_dict()
    assert {key: plan.expected[key] for key in measured} == measured


def _reaches(group, block):
    return any(part.tensor.startswith(f"{block}.") and part.side == "in" for part in group.slices)


def test_a_bundle_rebuilds_the_map(tmp_path):
    model, x = build("resnet")
    plan = plan_of(model, x, Edit("block", "layer1.1", replace="linear"))
    result = sp.compress(model, calibration=[x], plan=plan, structures=("blocks",))
    sp.save(tmp_path / "bundle", result)
    again = sp.load(tmp_path / "bundle", model=copy.deepcopy(model))
    assert torch.equal(call(again, x), call(result.model, x))
    assert measure_cost(again, example_of(x)).macs < measure_cost(model, example_of(x)).macs


@pytest.mark.parametrize("method", ["least_squares", "fold"])
def test_following_a_plan_fits_its_maps_once(monkeypatch, method):
    model, x = build("resnet")
    plan = plan_of(model, x, Edit("block", "layer1.1", replace="linear"))
    fits, fit = [], Mapped.set
    monkeypatch.setattr(Mapped, "set", lambda module, *parts: fits.append(fit(module, *parts)))
    followed = Recovery([x], method=method).follow(plan, Network.trace(model, x)).model
    assert len(fits) == 1
    small = apply(plan, model)
    fit_stand_ins(small, plan, Network.trace(model, x), [x])
    reconstruct(small, plan, model, [x], method)
    assert all(torch.equal(value, followed.state_dict()[key]) for key, value in small.state_dict().items())


def test_deleted_layers_come_back_for_a_repair_and_go_again():
    model, batch = build("llama")
    plan = plan_of(model, batch, Edit("block", BLOCKS["llama"][1]))
    small = apply(plan, model)
    names, output = list(small.state_dict()), call(small, batch)
    with restored(small):
        assert len(small.model.layers) == small.config.num_hidden_layers == 4
        assert torch.equal(call(small, batch), output)
    assert len(small.model.layers) == small.config.num_hidden_layers == 3
    refits = reconstruct(small, plan, model, [batch])
    blocks = {refit.layer.split(".")[2] for refit in refits if refit.layer.startswith("model.layers.")}
    assert blocks == {"0", "2", "3"}  # numbers of the original, and the block before the gap makes up for it too
    assert list(small.state_dict()) == names


@pytest.mark.parametrize(
    "edit, message",
    [
        ({"remove": "block", "name": "0", "replace": "median"}, "replace must be"),
        ({"remove": "channels", "name": "2", "indices": [0], "of": 3, "replace": "zero"}, "left out"),
    ],
)
def test_replacements_that_are_none_are_refused(edit, message):
    model, x = affine(False)
    data = plan_of(model, x).to_dict() | {"edits": [edit]}
    with pytest.raises(ValueError, match=message):
        Plan.from_dict(data)
