from types import SimpleNamespace

import pytest
import torch
from torch import nn

from simprune.structures import _candidates, structure
from simprune.trace.network import Network
from simprune.zoo.residual import ResidualCNN
from tests.networks import build


def found(model, x):
    blocks, refused = structure("blocks").find(Network(model, ((x[:2],), {})))
    return [block.name for block in blocks], dict(refused)


def test_the_innermost_residual_modules_are_found_in_order():
    assert found(*build("Residual"))[0] == ["blocks.0", "blocks.1"]
    assert found(*build("Tokens"))[0] == ["layers.0", "layers.1"]


def test_no_pair_of_blocks_is_compared_to_find_them(monkeypatch):
    looked_at, has_matrix = [], _candidates.has_matrix
    monkeypatch.setattr(_candidates, "has_matrix", lambda module: looked_at.append(module) or has_matrix(module))
    model = ResidualCNN(in_channels=3, widths=(4,), depths=(9,)).eval()
    network = Network(model, ((torch.randn(2, 3, 8, 8),), {}))
    assert len(_candidates.resolve(model, network.visits, lambda name: False)) == 9
    assert len(looked_at) <= sum(1 for _ in model.modules())


class Encoder(nn.Module):
    """Layers between which it adds positions; like encoders of transformers, it may return more than a tensor."""

    def __init__(self, modules, wraps):
        super().__init__()
        self.layers, self.positions, self.wraps = nn.ModuleList(modules), nn.Parameter(torch.randn(5, 8)), wraps

    def forward(self, x):
        for layer in self.layers:
            x = layer(x + self.positions)
        return SimpleNamespace(states=x) if self.wraps else x


class Layer(nn.Module):
    """A residual layer; `hidden` makes layers unlike."""

    def __init__(self, hidden):
        super().__init__()
        self.mlp = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, hidden), nn.GELU(), nn.Linear(hidden, 8))

    def forward(self, x):
        return x + self.mlp(x)


class Encoded(nn.Module):
    def __init__(self, hidden, wraps):
        super().__init__()
        self.encoder, self.head = Encoder([Layer(size) for size in hidden], wraps), nn.Linear(8, 3)

    def forward(self, x):
        x = self.encoder(x)
        return self.head((x.states if self.encoder.wraps else x).mean(1))


@pytest.mark.parametrize("hidden, wraps, opened", [
    ((6, 6, 6), False, True), ((6, 6), False, True), ((6, 6, 6), True, True), ((6, 7, 6), True, True),
    ((6, 7, 6), False, False),
])  # fmt: skip
def test_an_encoder_that_does_more_than_chain_its_layers_is_opened(hidden, wraps, opened):
    torch.manual_seed(0)
    layers = [f"encoder.layers.{number}" for number in range(len(hidden))]
    names, refused = found(Encoded(hidden, wraps).eval(), torch.randn(3, 5, 8))
    assert names == (layers if opened else ["encoder"]) and not refused


def test_networks_without_shortcuts_have_no_blocks():
    assert found(*build("Flat")) == ([], {})
    plain = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 4))
    assert found(plain, torch.randn(3, 4))[0] == []


def test_blocks_that_change_the_resolution_stay():
    model = ResidualCNN(in_channels=3, widths=(4, 8), depths=(2, 2), shortcut="B").eval()
    assert found(model, torch.randn(2, 3, 8, 8))[0] == ["layer1.0", "layer1.1", "layer2.1"]


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.block, self.head = build("Residual")[0].blocks[0], nn.Conv2d(8, 5, 1)

    def forward(self, x):
        x = torch.relu(x.repeat(1, 3, 1, 1)[:, :8])
        return self.head(self.block(self.block(x))).mean((2, 3))


def test_a_block_that_runs_twice_is_refused():
    names, refused = found(Twice().eval(), build("Residual")[1])
    assert names == []
    assert "2 times" in refused["block"]


class Handing(nn.Module):
    """Residual layers of which one needs that an earlier one has run, beside the stream."""

    def __init__(self, count: int, giver: int, taker: int) -> None:
        super().__init__()
        self.notes: list[str] = []
        self.layers = nn.Sequential(*(Step(self.notes, i == giver, i == taker) for i in range(count)))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        self.notes[:] = ["running"]
        x = self.layers(x)
        self.notes.clear()
        return self.head(x)


class Step(nn.Module):
    def __init__(self, notes: list[str], gives: bool, takes: bool) -> None:
        super().__init__()
        self.inner, self.gives, self.takes = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), gives, takes
        self.notes = notes

    def forward(self, x):
        if self.gives:
            self.notes.append("given")
        if self.takes and self.notes == ["running"]:
            raise IndexError("nothing was given")
        return x + self.inner(x)


def test_among_many_blocks_the_one_that_another_needs_is_refused():
    torch.manual_seed(0)
    for giver, taker in ((3, 4), (3, 17), (0, 8)):
        names, refused = found(Handing(18, giver, taker).eval(), torch.randn(4, 4))
        assert list(refused) == [f"layers.{giver}"], (giver, taker)
        assert names == [f"layers.{i}" for i in range(18) if i != giver]
