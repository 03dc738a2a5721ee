"""Subclasses of layers: the product with the weight is fitted, whatever the class is called; others are named."""

import torch
from torch import nn

import simprune as sp
from simprune.core.example import describe, example_of
from simprune.core.plan import Edit, Plan, fingerprint


class Product(nn.Linear):
    def forward(self, x):
        return x @ self.weight.T + self.bias


class Absolute(nn.Linear):
    def forward(self, x):
        return super().forward(x).abs()


def test_products_are_fitted_and_others_are_said_to_be_left_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), Product(12, 8), nn.ReLU(), Absolute(8, 8), nn.Linear(8, 3))
    data = [torch.randn(64, 6) for _ in range(2)]
    plan = Plan((Edit("channels", "0", (0, 3, 4, 7), 12),), fingerprint(model), describe(example_of(data[0])))
    result = sp.compress(model, calibration=data, plan=plan)
    assert {refit["layer"] for refit in result.report["reconstruction"]} == {"2", "5"}
    notes = [note for note in result.report["notes"] if "Absolute" in note]
    assert notes == ["4: not refitted, because Absolute computes something else than a product with its weight"]
