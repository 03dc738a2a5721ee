import numpy as np
import pytest
import torch
from torch import nn

import simprune as sp
from simprune.scores.channels import refuse_wide
from simprune.scores.channels.second_order import second_order
from simprune.structures import structure
from simprune.trace.network import Network


def network_of(model, x):
    return Network(model, ((x[:2],), {}))


@pytest.fixture
def perceptron():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x = torch.randn(500, 4, dtype=torch.float64)
    return model, x, structure("channels").find(network_of(model, x))[0]


def left_by(hidden, target, kept):
    """Squared error per sample of the best affine fit of the outputs on the kept hidden units, by numpy."""
    x, y = hidden[:, kept] - hidden[:, kept].mean(0), target - target.mean(0)
    return np.square(y - x @ np.linalg.lstsq(x, y, rcond=None)[0]).sum() / len(y)


def test_damage_adds_up_to_the_error_after_the_refit(perceptron):
    model, x, groups = perceptron
    with torch.no_grad():
        hidden, target = model[:2](x).numpy(), model(x).numpy()
    score = second_order(network_of(model, x), [x[:200], x[200:]], groups)["0"]
    variance = np.square(target - target.mean(0)).sum() / len(target)
    for gone in range(1, 6):
        kept = sorted(score.order[gone:])
        expected = left_by(hidden, target, kept) / variance
        # G is the identity only on average over random directions: 500 leave some noise, and the ridge some bias
        assert sum(score.damage[c] for c in score.order[:gone]) == pytest.approx(expected, rel=0.35, abs=2e-3)


def test_the_first_to_go_is_the_one_whose_loss_hurts_least(perceptron):
    model, x, groups = perceptron
    with torch.no_grad():
        hidden, target = model[:2](x).numpy(), model(x).numpy()
    losses = [left_by(hidden, target, [k for k in range(6) if k != c]) for c in range(6)]
    score = second_order(network_of(model, x), [x], groups)["0"]
    assert losses[score.order[0]] <= 1.2 * min(losses)


def test_a_readers_deaf_channel_costs_nothing(perceptron):
    model, x, groups = perceptron
    model[2].weight.data[:, 3] = 0
    score = second_order(network_of(model, x), [x], groups)["0"]
    assert score.order[0] == 3
    assert score.damage[3] == pytest.approx(0, abs=1e-12)


class Readers(nn.Module):
    """A hidden layer that one layer reads, or two that have half of its outputs each."""

    def __init__(self, apart: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, last = nn.Linear(4, 6), nn.Linear(6, 4)
        self.last = nn.ModuleList([last] if not apart else [nn.Linear(6, 2), nn.Linear(6, 2)])
        with torch.no_grad():
            for part, weight, bias in zip(self.last, last.weight.chunk(2), last.bias.chunk(2), strict=False):
                part.weight.copy_(weight if apart else last.weight)
                part.bias.copy_(bias if apart else last.bias)
        self.double()

    def forward(self, x):
        return torch.cat([part(self.first(x).tanh()) for part in self.last], 1)


def test_layers_that_read_the_same_inputs_are_as_one_layer_of_all_outputs():
    """As far as directions are the same for both: what two layers give is not weighed across them."""
    x, scores = torch.randn(500, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)), []
    for apart in (False, True):
        network = network_of(Readers(apart).eval(), x)
        scores.append(second_order(network, [x[:200], x[200:]], structure("channels").find(network)[0])["first"])
    assert scores[0].order == scores[1].order
    assert scores[1].damage == pytest.approx(scores[0].damage, rel=0.1)


def test_layers_too_wide_for_the_memory_that_is_free_are_refused_before_any_pass(perceptron, monkeypatch):
    model, x, groups = perceptron
    network, runs = network_of(model, x), []
    _ = network.axes  # which is traced once
    model.register_forward_pre_hook(lambda *_: runs.append(1))
    monkeypatch.setattr("simprune.core.sizes.free_memory", lambda: 100)
    with pytest.raises(ValueError, match="are needed, and 1e-07 GB are free; most of it for 2 \\(3 x 6\\)"):
        second_order(network, [x], groups)
    assert not runs


def test_layers_of_a_chain_that_are_too_wide_are_refused_before_the_model_runs(perceptron, monkeypatch):
    model, x, _ = perceptron
    runs = []
    model.register_forward_pre_hook(lambda *_: runs.append(1))
    monkeypatch.setattr("simprune.core.sizes.free_memory", lambda: 700)
    for call in (lambda: sp.analyze(model, [x]), lambda: sp.compress(model, calibration=[x], budget={"macs": 0.5})):
        with pytest.raises(ValueError, match="most of it for 2 \\(3 x 6\\); choose score=magnitude"):
            call()
    assert not runs
    refuse_wide(model, ("blocks",), "second_order")
    refuse_wide(nn.Sequential(nn.Linear(9, 9), nn.LayerNorm(9), nn.Linear(9, 9)), ("channels",), "second_order")
    sp.analyze(model, [x], score="magnitude")
