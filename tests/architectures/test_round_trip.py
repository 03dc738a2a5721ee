"""The whole path on small random instances of every supported architecture."""

from types import SimpleNamespace

import pytest
import torch

import simprune as sp
from simprune import bundle
from simprune.core.batches import call, inputs_of
from simprune.core.example import example_of
from simprune.trace.cost import measure_cost
from tests.architectures.networks import DEPTH, SUPPORTED, batches, make

STRUCTURES = ("channels", "heads", "blocks")


@pytest.mark.parametrize("name", SUPPORTED)
def test_analyze_plan_apply_reconstruct_save_load_export(name, tmp_path):
    model, calibration = make(name), batches(name)
    redundancy = sp.analyze(model, calibration, structures=STRUCTURES)
    plan = sp.plan(redundancy, {"macs": 0.7})
    small = sp.apply(plan, model)
    assert sp.reconstruct(small, plan, model, calibration)
    example = example_of(calibration[0])
    assert measure_cost(small, example).macs <= 0.7 * measure_cost(model, example).macs
    with torch.no_grad():
        output = call(small, calibration[0])
    assert output.shape == call(model, calibration[0]).shape
    assert output.isfinite().all()

    bundle.save(tmp_path / "small", SimpleNamespace(model=small, plan=plan, report={"simprune": "0.1.0", "stages": []}))
    loaded = bundle.load(tmp_path / "small", lambda: make(name))
    with torch.no_grad():
        assert torch.equal(call(loaded.eval(), calibration[0]), output)

    args, kwargs = inputs_of(calibration[0])
    exported = torch.export.export(small.eval(), args, kwargs).module()
    with torch.no_grad():
        again = exported(*args, **kwargs)
    again = again if isinstance(again, torch.Tensor) else again["logits"]
    torch.testing.assert_close(again, output, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("replace", ["identity", "linear"])
@pytest.mark.parametrize("name", DEPTH)
def test_blocks_go_and_the_rest_is_repaired_and_kept(name, replace, tmp_path):
    model, calibration = make(name), batches(name)
    redundancy = sp.analyze(model, calibration, structures=["blocks"], replace=replace)
    assert len(redundancy.blocks) >= 2
    cheapest = min(entry.share for entry in redundancy.blocks)
    plan = sp.plan(redundancy, {"macs": 1 - 0.5 * cheapest})
    assert plan.blocks
    result = sp.compress(model, calibration=calibration, plan=plan, structures=["blocks"])
    errors = [refit["after"] for refit in result.report["reconstruction"]]
    assert errors
    assert all(error < 1 for error in errors)
    bundle.save(tmp_path / "small", result)
    loaded = bundle.load(tmp_path / "small", lambda: make(name))
    with torch.no_grad():
        assert torch.equal(call(loaded.eval(), calibration[0]), call(result.model.eval(), calibration[0]))


def test_what_mixtral_does_not_support_is_said_and_the_rest_goes_on():
    model, calibration = make("mixtral"), batches("mixtral")
    redundancy = sp.analyze(model, calibration, structures=STRUCTURES)
    assert [entry.group.kind for entry in redundancy.channels] == ["heads", "heads"]
    reasons = dict(redundancy.unprunable)
    assert "gate mixes its channels" in reasons["model.embed_tokens"]  # by a weight that no layer holds
    small = sp.apply(sp.plan(redundancy, {"macs": 0.9}), model)
    assert call(small, calibration[0]).shape == call(model, calibration[0]).shape
