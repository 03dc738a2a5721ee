"""Layers under weight_norm or a mask of torch.nn.utils.prune lose channels, and keep their rule."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import simprune as sp
from simprune.core.plan import Edit
from simprune.trace.network import Network
from tests.structures.test_contract import plan_of


def old_style(layer: nn.Module, dim: int | None = 0) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(layer, dim=dim)


RULES = {
    "weight_norm": parametrizations.weight_norm,
    "weight_norm over inputs": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "weight_norm of the whole": lambda layer: parametrizations.weight_norm(layer, dim=None),
    "weight_norm, old style": old_style,
    "mask": lambda layer: prune.l1_unstructured(layer, "weight", 0.4),
    "two masks": lambda layer: [prune.random_unstructured(layer, "weight", 0.2) for _ in range(2)],
    "mask of the bias": lambda layer: prune.l1_unstructured(layer, "bias", 0.4),
}


def build(rule: str) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3 if at == 0 else 8, 8, 3, padding=1) for at in range(3)]
    model = nn.Sequential(*layers[:2], nn.ReLU(), layers[2], nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)).eval()
    for layer in layers[1:]:
        RULES[rule](layer)
        for name, parameter in layer.named_parameters():
            if name.endswith(("original0", "_g")):
                parameter.data *= -1.5  # what somebody trained
    return model


@pytest.mark.parametrize("rule", RULES)
def test_removed_equals_masked_the_rule_stays_and_the_original_is_unchanged(rule, tmp_path):
    model, state, x = build(rule), copy.deepcopy(build(rule).state_dict()), torch.randn(24, 3, 4, 4)
    batches = list(x.split(8))
    redundancy = sp.analyze(model, batches, structures=("channels",))
    assert not [reason for _, reason in redundancy.unprunable if "computes" in reason]
    edits = [Edit("channels", name, units, 8) for name, units in (("0", (1, 4)), ("1", (0, 2, 3)), ("3", (5,)))]
    plan = plan_of(model, x, *edits)
    small = sp.apply(plan, model)
    assert list(small.state_dict()) == list(model.state_dict())
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    masked = Network.trace(model, x).model  # with plain weights
    assert masked is not model
    plain = copy.deepcopy(masked)
    readers = {"0": "1", "1": "3", "3": "6"}
    with torch.no_grad():
        for edit in plan.edits:
            weight: Tensor = plain.get_submodule(readers[edit.name]).weight
            taps = weight.shape[1] // edit.of
            for unit in edit.indices:
                weight[:, unit * taps : (unit + 1) * taps] = 0
        torch.testing.assert_close(small(x), plain(x), rtol=1e-5, atol=1e-6)
    small.train()(x).sum().backward()
    model.train()(x).sum().backward()  # a copy of a model that has just been trained, with its graph, is possible
    torch.testing.assert_close(sp.apply(plan, model.eval())(x), small.eval()(x))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("method", ["blockwise", "fold"])
def test_repair_keeps_the_rule_and_brings_outputs_nearer(rule, method):
    model, x = build(rule), torch.randn(64, 3, 4, 4)
    batches, fresh = list(x.split(16)), torch.randn(64, 3, 4, 4)
    plan = sp.plan(sp.analyze(model, batches, structures=("channels",)), budget={"macs": 0.6})
    small = sp.apply(plan, model)
    with torch.no_grad():
        before = (small(fresh) - model(fresh)).square().mean()
    sp.reconstruct(small, plan, model, batches, method)
    assert list(small.state_dict()) == list(model.state_dict())
    with torch.no_grad():
        after = (small(fresh) - model(fresh)).square().mean()
    assert after != before if method == "fold" else after < 0.95 * before
    for name, mask in small.named_buffers():
        if name.endswith("weight_mask"):
            weight = small.get_submodule(name.rpartition(".")[0]).weight
            assert not weight[mask == 0].any()


def test_a_bundle_of_normalised_weights_reloads(tmp_path):
    model, x = build("weight_norm"), torch.randn(24, 3, 4, 4)
    result = sp.compress(model, calibration=list(x.split(8)), test=list(x.split(8)), budget={"macs": 0.6})
    sp.save(tmp_path / "bundle", result)
    again = sp.load(tmp_path / "bundle", model=lambda: build("weight_norm"))
    assert list(again.state_dict()) == list(result.model.state_dict())
    torch.testing.assert_close(again(x), result.model(x), rtol=0, atol=0)
