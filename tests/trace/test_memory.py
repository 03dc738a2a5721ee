"""Peak activation memory against what is worked out by hand."""

import pytest
import torch
from torch import nn

from simprune.trace.memory import peak_memory
from tests.networks import build

FLOAT = 4


def example(*shape):
    return (torch.zeros(*shape),), {}


@pytest.mark.parametrize("rows", [1, 3])
def test_a_chain_holds_what_a_layer_reads_and_makes(rows):
    model = nn.Sequential(nn.Linear(4, 100), nn.Linear(100, 7), nn.Linear(7, 50), nn.Linear(50, 2))
    assert peak_memory(model, example(rows, 4)) == FLOAT * (100 + 7)  # the input of the first layer does not count


class Wide(nn.Module):
    """x is kept alive across the wide middle by the sum at the end."""

    def __init__(self, keep):
        super().__init__()
        self.first, self.up, self.down, self.keep = nn.Linear(5, 6), nn.Linear(6, 40), nn.Linear(40, 6), keep

    def forward(self, x):
        x = self.first(x)
        y = self.up(x)
        if not self.keep:
            del x
        y = self.down(y)
        return y + x if self.keep else y


def test_a_shortcut_keeps_its_tensor_alive():
    assert peak_memory(Wide(True), example(2, 5)) == FLOAT * (6 + 40 + 6)
    assert peak_memory(Wide(False), example(2, 5)) == FLOAT * (6 + 40)


def test_views_and_work_in_place_add_nothing():
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(inplace=True), nn.Flatten())
    assert peak_memory(model, example(2, 3, 4, 4)) == FLOAT * 5 * 16


def test_precision_and_channels_count(tmp_path):
    model = nn.Linear(4, 10)
    assert peak_memory(model.double(), ((torch.zeros(2, 4, dtype=torch.float64),), {})) == 8 * 10


@pytest.mark.parametrize("name", ["Residual", "Tokens"])
def test_it_does_not_depend_on_the_batch_and_leaves_the_model_alone(name):
    model, x = build(name)
    model.train()
    assert peak_memory(model, ((x[:1],), {})) == peak_memory(model, ((x[:4],), {})) > 0
    assert all(module.training for module in model.modules())
