"""Laws of float16: the same structures and damages as in float32, and what is no number stops with the layer's name."""

import pytest
import torch

import simprune as sp
from tests.architectures import language_models


def test_everything_runs_in_float16_and_expects_what_float32_does():
    batches = [language_models.batch(6, 10) for _ in range(2)]
    half = language_models.make("llama", torch.float16)
    single = language_models.make("llama", torch.float16).float()
    found = [sp.analyze(model, batches, structures=("heads", "blocks")) for model in (half, single)]
    for one, other in zip(found[0].entries, found[1].entries, strict=True):
        assert one.name == other.name
        a, b = (torch.tensor(entry.damage).sum() for entry in (one, other))
        torch.testing.assert_close(a, b, rtol=0.05, atol=1e-4)
    plan = sp.plan(found[0], {"params": 0.8})
    small = sp.apply(plan, half)
    sp.reconstruct(small, plan, half, batches)
    assert {parameter.dtype for parameter in small.parameters()} == {torch.float16}
    assert all(parameter.isfinite().all() for parameter in small.parameters())
    assert sp.validate(half, half, batches).outcome in ("pass", "inconclusive")


@pytest.mark.parametrize("kind", ["channels", "heads", "blocks"])
def test_what_is_no_number_stops_the_analysis_with_the_layer_s_name(kind):
    model = language_models.make("llama")
    model.get_parameter("model.layers.1.mlp.up_proj.weight").data[0] = 3e38  # finite, but its products overflow
    with pytest.raises(ValueError, match=r"the output of model\.layers\.1\.mlp\.up_proj has (nan|inf)"):
        sp.analyze(model, [language_models.batch()], structures=(kind,))
