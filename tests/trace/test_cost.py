import pytest
import torch
from torch import nn

from simprune.core.cost import Cost
from simprune.trace.cost import cost_model, measure_cost
from simprune.trace.timing import clock
from tests.networks import build


def test_macs_params_bytes_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(128, 2))
    cost = measure_cost(model, ((torch.zeros(2, 3, 4, 4),), {}))
    assert cost.macs == 3 * 8 * 9 * 16 + 128 * 2
    assert cost.params == 3 * 8 * 9 + 2 * 8 + 128 * 2 + 2
    assert cost.bytes == 4 * (cost.params + 16) + 8  # running mean and variance, and the count of batches


def test_attention_products_are_counted():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    tokens, width = 5, 8
    expected = tokens * (3 * width * width + width * width + 2 * width * 16) + 2 * tokens * tokens * width
    assert measure_cost(layer, ((torch.zeros(2, tokens, width),), {})).macs == expected


def test_cost_does_not_depend_on_the_batch_size():
    model, x = build("Tokens")
    assert measure_cost(model, ((x[:2],), {})) == measure_cost(model, ((x[:7],), {}))


def test_dropping_a_module_takes_its_whole_cost():
    model, x = build("Residual")
    model_cost = cost_model(model, ((x,), {}))
    left = model_cost.after(dropped=["blocks.0"])
    model.blocks[0] = nn.Identity()
    assert left == measure_cost(model, ((x,), {}))


def test_shares_are_fractions_of_the_whole():
    assert Cost(50, 10, 4).share_of(Cost(100, 40, 4)) == {"macs": 0.5, "params": 0.25, "bytes": 1.0}


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_the_mode_alone(training):
    model, x = build("Residual")
    model.train(training)
    measure_cost(model, ((x,), {}))
    assert clock(model, (x[:2],), {}) > 0
    assert all(module.training == training for module in model.modules())


class Nested(nn.Module):
    """Layers that stand in the network and in the module that calls them, as in nested U-Nets."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up, self.head = nn.Linear(4, 8), nn.Linear(8, 4), nn.Linear(4, 3)
        self.skip = nn.Sequential(self.down, nn.Sequential(nn.ReLU(), self.up))

    def forward(self, x):
        return self.head(self.skip(x) @ torch.eye(4))


def test_a_module_with_several_names_costs_what_it_does():
    model = cost_model(Nested(), ((torch.randn(2, 4),), {}))
    assert model.total().macs == 4 * 8 + 8 * 4 + 4 * 3 + 4 * 4
    assert model.after({("down.weight", 0): 2, ("up.weight", 1): 2}).macs == 4 * 6 + 6 * 4 + 4 * 3 + 4 * 4
