"""Layers that compute their weight in the forward pass: pruned where that is exact, else one line says what to do."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import simprune as sp


class Own(nn.Conv2d):
    """A convolution with a weight that it computes."""

    computed: Any

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.gain = nn.Parameter(torch.full((self.out_channels, 1, 1, 1), 1.3))

    def forward(self, input):
        return F.conv2d(input, self.computed(), self.bias, self.stride, self.padding)


class Standardised(Own):
    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        del self.gain

    def computed(self):
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True, correction=0)
        return (self.weight - mean) * torch.rsqrt(variance + 1e-10)


class ByBatchNorm(Standardised):
    def computed(self):
        rows = self.weight.reshape(1, self.out_channels, -1)
        return F.batch_norm(rows, None, None, training=True, momentum=0.0).reshape_as(self.weight)


class Scaled(Own):
    def computed(self):
        rows, gain = self.weight.reshape(1, self.out_channels, -1), self.gain.flatten()
        return F.batch_norm(rows, None, None, gain, training=True, momentum=0.0).reshape_as(self.weight)


class Binary(Standardised):
    def computed(self):
        return self.weight.sign() * self.weight.abs().mean((1, 2, 3), keepdim=True)


class Halved(Standardised):
    """Every entry of the weight is by itself."""

    def computed(self):
        return self.weight * 0.5


class PaddedHere(Standardised):
    """Pads by itself, computes with its own weight."""

    def forward(self, input):
        return F.conv2d(F.pad(input, (0, 0, 0, 0)), self.weight, self.bias, padding=self.padding)


class Net(nn.Module):
    """One layer behind another one, with a normalisation between them, and a last layer of torch."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = kind(3, 8, 3, padding=1), nn.GroupNorm(1, 8)
        self.second, self.head = kind(8, 6, 3, padding=1), nn.Linear(6, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        return self.head(torch.relu(self.second(x)).mean((2, 3)))


BATCHES = [torch.randn(16, 3, 5, 5, generator=torch.Generator().manual_seed(1))]


def analyzed(model):
    return sp.analyze(model, BATCHES, structures=("channels",), score="magnitude")


@pytest.mark.parametrize("kind", [Standardised, ByBatchNorm, Scaled, Binary])
def test_what_depends_on_other_inputs_stays_with_a_remedy_that_works(kind):
    model: Any = Net(kind).eval()
    redundancy = analyzed(model)
    reasons = dict(redundancy.unprunable)
    assert f"weights that are computed in the forward pass (first, second: {kind.__name__})" in reasons["first"]
    assert "put layers of torch.nn with the computed weights in their place" in reasons["first"]
    plain: Any = Net(nn.Conv2d).eval()
    with torch.no_grad():
        for layer, own in ((plain.first, model.first), (plain.second, model.second)):
            layer.weight.copy_(own.computed())
            layer.bias.copy_(own.bias)
    torch.testing.assert_close(plain(BATCHES[0]), model(BATCHES[0]))
    assert [entry.name for entry in analyzed(plain).channels] == ["first", "second"]


@pytest.mark.parametrize("kind", [Standardised, ByBatchNorm, Binary])
def test_outputs_go_where_a_plain_layer_reads_them(kind):
    """What is computed of one output's weights says nothing of another output."""
    model: Any = Net(kind).eval()
    edit = sp.Edit("channels", "second", (1, 4), 6)
    plan = sp.Plan((edit,), (redundancy := analyzed(model)).fingerprint, redundancy.inputs)
    small: Any = sp.apply(plan, model)
    stays = [0, 2, 3, 5]
    torch.testing.assert_close(small.second.computed(), model.second.computed()[stays])
    assert [entry.name for entry in redundancy.channels] == ["second"]


@pytest.mark.parametrize("kind", [Halved, PaddedHere])
def test_a_forward_pass_of_its_own_is_no_reason(kind):
    assert [entry.name for entry in analyzed(Net(kind).eval()).channels] == ["first", "second"]
