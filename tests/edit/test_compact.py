"""Deleting layers from a counted list can be undone for a while, also in copies of the model."""

import copy

import pytest
import torch
from torch import nn

from simprune import apply
from simprune.core.example import describe, example_of
from simprune.core.plan import Edit, Plan, fingerprint
from simprune.edit.compact import compact, restored
from simprune.trace.bypass import Bypass, install


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.num_layers = 3

    def forward(self, x):
        for index in range(self.num_layers):
            x = self.layers[index](x)
        return x


def test_deleted_layers_come_back_under_their_names_and_go_again():
    model, x = Stack(), torch.randn(2, 4)
    install(model, "layers.1", Bypass())
    output, names = model(x), list(dict(model.named_parameters()))
    assert compact(model) and not compact(Stack())
    for small in (model, copy.deepcopy(model)):
        assert len(small.layers) == small.num_layers == 2
        assert list(small.state_dict()) == [name.replace("2", "1") for name in names]
        with restored(small), restored(small):
            assert len(small.layers) == small.num_layers == 3
            assert list(dict(small.named_parameters())) == names
            torch.testing.assert_close(small(x), output, rtol=0, atol=0)
        assert len(small.layers) == small.num_layers == 2
        torch.testing.assert_close(small(x), output, rtol=0, atol=0)


class ByNumber(Stack):
    """Every second layer is another kind, as in hybrids of attention and recurrence."""

    def __init__(self, fails: bool):
        super().__init__()
        self.fails = fails

    def forward(self, x):
        if self.fails and len(self.layers) < 3:
            raise RuntimeError("no state of this kind")
        for index in range(self.num_layers):
            x = self.layers[index](x) * (1 + index % 2)
        return x


@pytest.mark.parametrize("fails", [False, True])
def test_layers_whose_numbers_matter_stay_as_stand_ins(fails):
    model, x = ByNumber(fails), torch.randn(2, 4)
    plan = Plan((Edit("block", "layers.0"),), fingerprint(model), describe(example_of(x)))
    small = apply(plan, model)
    expected = model.layers[2](model.layers[1](x) * 2)
    torch.testing.assert_close(small(x), expected)
    assert len(small.layers) == 3 and not compact(small)
