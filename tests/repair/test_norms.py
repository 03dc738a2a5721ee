"""Laws of normalisations over fewer channels."""

import pytest
import torch
from torch import nn

import simprune as sp
from simprune.core.batches import call
from simprune.core.example import describe, example_of
from simprune.core.plan import Edit, Plan, fingerprint
from simprune.structures import structure
from simprune.trace.network import Network
from tests.architectures import language_models

GONE = (0, 5, 9, 14, 20, 31)


def narrowed(name, silent):
    """A model, its batch, and the plan that removes channels of its stream, which carry nothing if `silent`."""
    model, batch = language_models.make(name), language_models.batch(6, 12)
    groups, _ = structure("channels").find(Network.trace(model, batch))
    stream = next(group for group in groups if group.width == 32 and "embed" in group.name)
    for part in stream.slices if silent else ():
        tensor = model.get_parameter(part.tensor)
        if part.side == "out" and tensor.ndim > 1:
            tensor.data.index_fill_(part.dim, torch.tensor(GONE), 0.0)
    edit = Edit("channels", stream.name, GONE, stream.width)
    return model, batch, Plan((edit,), fingerprint(model), describe(example_of(batch)))


def damage(small, model, batch):
    with torch.no_grad():
        given, wanted = call(small, batch), call(model, batch)
    return float((given - wanted).square().sum() / (wanted - wanted.mean((0, 1))).square().sum())


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_channels_that_carry_nothing_go_exactly_from_mean_squares(name):
    model, batch, plan = narrowed(name, silent=True)
    small = sp.apply(plan, model)
    assert damage(small, model, batch) > 1e-3
    sp.reconstruct(small, plan, model, [batch], method="norms")
    assert damage(small, model, batch) < 1e-8


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
def test_the_output_of_a_norm_comes_nearest_to_the_original(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), kind(16), nn.Linear(16, 3)).eval()
    model[0].weight.data[:8] *= 0.2  # what goes is weaker than what stays
    data = torch.randn(256, 6)
    plan = Plan((Edit("channels", "0", tuple(range(6)), 16),), fingerprint(model), describe(example_of(data)))
    small = sp.apply(plan, model)

    def error(factor):
        weight = small[1].weight.data.clone()
        small[1].weight.data *= factor
        with torch.no_grad():
            off = float((small[:2](data) - model[:2](data)[:, 6:]).square().sum())
        small[1].weight.data = weight
        return off

    before = error(1.0)
    sp.reconstruct(small, plan, model, [data], method="norms")
    assert error(1.0) < before
    assert error(1.0) <= min(error(0.99), error(1.01))


def test_norms_that_keep_their_channels_stay():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    data = [torch.randn(16, 6)]
    plan = Plan((Edit("channels", "0", (1, 2), 8),), fingerprint(model), describe(example_of(data[0])))
    small = sp.apply(plan, model)
    sp.reconstruct(small, plan, model, data, method="norms")
    assert torch.equal(small[3].weight, model[3].weight)
