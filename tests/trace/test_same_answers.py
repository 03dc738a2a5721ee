"""What makes every comparison worthless is said before the work: answers that change by themselves, or never."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import simprune as sp


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x + self.calls


class Noisy(nn.Module):
    def forward(self, x):
        return x + 0.1 * torch.randn_like(x)


class Dropping(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5)  # without `self.training` it is on in evaluation mode too


class Still(nn.Identity):
    """Answers that differ by rounding alone, as some operations of a GPU do."""

    def forward(self, x):
        return x * (1 + 1e-7 * torch.randn(()))


def network(inner):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), inner, nn.Linear(8, 3)).eval()


@pytest.mark.parametrize("inner", [Counting, Noisy, Dropping])
@pytest.mark.parametrize("call", ["analyze", "validate"])
def test_a_model_that_answers_twice_differently_is_named_with_the_layer(inner, call):
    model, x = network(inner()), [torch.randn(64, 4)]
    with pytest.raises(
        ValueError, match=r"answers the same \w+ batch differently twice in evaluation mode, first in 2:"
    ):
        sp.analyze(model, x) if call == "analyze" else sp.validate(network(nn.Identity()), model, x)


def test_rounding_and_dropout_that_is_off_are_no_difference():
    for inner in (Still(), nn.Dropout()):
        assert sp.analyze(network(inner).train(), [torch.randn(64, 4)]).channels


@pytest.mark.parametrize("value", [0.0, 1.5])
def test_inputs_that_are_all_equal_are_named(value):
    with pytest.raises(ValueError, match="calibration: all inputs are equal, .*give inputs that differ"):
        sp.analyze(network(nn.Identity()), [torch.full((32, 4), value)])
    with pytest.raises(ValueError, match="calibration: all inputs are equal"):
        sp.analyze(network(nn.Identity()), [torch.randn(1, 4)])


@pytest.mark.parametrize("heads", [1, 2])
def test_a_head_that_answers_all_inputs_alike_is_named(heads):
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = network(nn.Identity())
            self.heads = nn.ModuleList(nn.Linear(3, 2) for _ in range(heads))
            for head in self.heads:
                nn.init.zeros_(head.weight)

        def forward(self, x):
            outputs = tuple(head(self.body(x)) for head in self.heads)
            return outputs if heads > 1 else outputs[0]

    with pytest.raises(ValueError, match="outputs of the network are the same for all calibration inputs"):
        sp.analyze(Heads(), [torch.randn(64, 4)])
