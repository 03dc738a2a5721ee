"""Every known trap of torch-pruning that would hang, corrupt or abort: found, refused with a reason, or done right."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from simprune.api import apply
from simprune.core.plan import Edit
from simprune.structures import structure
from simprune.trace import guarded
from simprune.trace.coupling import CouplingGraph
from simprune.trace.network import Network
from tests.structures.test_contract import plan_of

IMAGES = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(3))
ROWS = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))


def found(model, x):
    groups, refused = structure("channels").find(Network(model.eval(), ((x,), {})))
    return {group.name: group for group in groups}, dict(refused)


def check_removal(model, x, group, units):
    """Removing units equals having every reader ignore them."""
    masked = copy.deepcopy(model)
    for part in group.slices:
        if part.side == "in":
            index = torch.tensor([i for unit in units for i in part.indices[unit]])
            masked.get_parameter(part.tensor).data.index_fill_(part.dim, index, 0.0)
    small = apply(plan_of(model, x, Edit("channels", group.name, group.expand(units), group.width)), model)
    torch.testing.assert_close(small(x), masked(x), rtol=1e-5, atol=1e-5)
    return small


class Interleaved(nn.Module):
    """Queries, keys and values of each head side by side in one convolution, as in YOLO11: torch-pruning loops."""

    def __init__(self):
        super().__init__()
        self.stem, self.qkv, self.own = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 32, 1), nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.proj, self.last, self.head = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 6, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        q, k, v = self.qkv(x).view(len(x), 2, 16, 16).split([4, 4, 8], 2)
        y = (v @ (q.transpose(-2, -1) @ k).softmax(-1).transpose(-2, -1)).view(x.shape) + self.own(v.reshape(x.shape))
        return self.head(torch.relu(self.last(x + self.proj(y)))).mean((2, 3))


def test_a_cyclic_mapping_is_bounded_and_the_rest_goes_on():
    groups, refused = found(Interleaved(), IMAGES)
    assert list(groups) == ["last"]
    assert "mixes its channels (matmul)" in refused["qkv"]


class Windows(nn.Module):
    """Shifted windows and patch merging as in Swin: index lists that double with every block."""

    def __init__(self, width=8):
        super().__init__()
        self.stem, self.up, self.down = nn.Conv2d(3, width, 1), nn.Linear(width, 12), nn.Linear(12, width)
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(3))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.merge, self.head = nn.Linear(4 * width, width), nn.Linear(width, 3)

    def forward(self, x):
        x = self.stem(x).permute(0, 2, 3, 1)
        for number, (qkv, out) in enumerate(zip(self.qkv, self.out, strict=True)):
            y = torch.roll(x, (-1, -1), (1, 2)) if number % 2 else x
            y = y.view(len(x), 2, 2, 2, 2, 8).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 8)
            q, k, v = qkv(y).reshape(-1, 4, 3, 2, 4).permute(2, 0, 3, 1, 4)
            y = out(((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).reshape(-1, 4, 8))
            x = x + y.view(len(x), 2, 2, 2, 2, 8).permute(0, 1, 3, 2, 4, 5).reshape(x.shape)
        x = x + self.down(F.gelu(self.up(x)))
        corners = [x[:, i::2, j::2] for j in range(2) for i in range(2)]
        return self.head(torch.relu(self.merge(torch.cat(corners, -1))).mean((1, 2)))


def test_exploding_index_lists_are_bounded():
    groups, refused = found(Windows(), IMAGES)
    assert "up" in groups
    assert {"stem", "qkv.0", "qkv.1", "qkv.2"} <= set(refused)


@pytest.mark.parametrize("part", [nn.RMSNorm(8), nn.LayerNorm(8), nn.LayerNorm(8, elementwise_affine=False)])
def test_normalised_shapes_follow(part):
    model = nn.Sequential(nn.Linear(6, 8), part, nn.Linear(8, 3)).eval()
    group = found(model, ROWS)[0]["0"]
    small = apply(plan_of(model, ROWS, Edit("channels", "0", (1, 4), 8)), model)
    assert tuple(small[1].normalized_shape) == (6,)
    assert group.size == 8
    assert small(ROWS).shape == (4, 3)


@pytest.mark.parametrize("groups, units", [(1, 8), (2, 4), (8, 8)])
def test_group_norms_lose_equally_many_channels_of_every_group(groups, units):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.GroupNorm(groups, 8), nn.Conv2d(8, 5, 1), nn.Flatten(), nn.Linear(80, 2)
    )
    group = found(model, IMAGES)[0]["0"]
    assert group.size == units
    small = apply(plan_of(model, IMAGES, Edit("channels", "0", group.expand([0]), 8)), model)
    assert small[1].num_groups == (7 if groups == 8 else groups)


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.g = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, padding=1, groups=4)
        self.b, self.c = nn.Conv2d(12, 6, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.g(torch.relu(self.a(x))))))).mean((2, 3))


def test_grouped_convolutions_lose_the_same_channel_of_every_group():
    model = Grouped()
    groups, _ = found(model, IMAGES)
    assert groups["a"].units == ((0, 2, 4, 6), (1, 3, 5, 7))
    assert groups["g"].units == ((0, 3, 6, 9), (1, 4, 7, 10), (2, 5, 8, 11))
    (reader,) = [part for part in groups["a"].slices if part.side == "in"]
    assert (reader.indices, reader.inputs) == (((0,), (1,)), groups["a"].units)
    for name in ("a", "g"):
        check_removal(model, IMAGES, groups[name], [1])
    with pytest.raises(ValueError, match=r"channels \[0, 2, 4, 6\] of a can only go together"):
        apply(plan_of(model, IMAGES, Edit("channels", "a", (0, 2), 8)), model)


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(8, 3)

    def forward(self, x):
        value, gate = self.a(x).chunk(2, -1)
        return self.b(value * torch.sigmoid(gate))


def test_halves_that_gate_each_other_go_together():
    model = Gated()
    group = found(model, ROWS)[0]["a"]
    assert group.units == tuple((unit, unit + 8) for unit in range(8))
    check_removal(model, ROWS, group, [2, 5])


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.lstm, self.b, self.c = (
            nn.Linear(6, 8),
            nn.LSTM(8, 8, batch_first=True),
            nn.Linear(8, 5),
            nn.Linear(5, 3),
        )

    def forward(self, x):
        return self.c(torch.relu(self.b(self.lstm(self.a(x)[:, None])[0][:, 0])))


class RawParameter(nn.Module):
    """A product with a parameter that no layer holds; `experts` of them make it a batch, as in Mixtral."""

    def __init__(self, inner, experts=1):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(inner, 5), nn.Linear(5, 3)
        self.w = nn.Parameter(torch.randn(experts, 8, inner))

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(torch.einsum("nd,kde->ne", torch.relu(self.a(x)), self.w)))))


class Parts(nn.Module):
    """One half of the channels is read apart from the other."""

    def __init__(self):
        super().__init__()
        self.a, self.upper, self.b, self.c = (
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(4, 6, 1),
            nn.Conv2d(10, 5, 1),
            nn.Linear(5, 2),
        )

    def forward(self, x):
        one, other = torch.relu(self.a(x)).chunk(2, 1)
        return self.c(torch.relu(self.b(torch.cat([one, torch.relu(self.upper(other))], 1))).mean((2, 3)))


def test_halves_that_are_read_apart_lose_aligned_channels():
    model = Parts()
    group = found(model, IMAGES)[0]["a"]
    assert group.units == tuple((unit, unit + 4) for unit in range(4))
    check_removal(model, IMAGES, group, [0, 2])


@pytest.mark.parametrize(
    "model, x",
    [
        (Recurrent(), ROWS),
        (RawParameter(7), ROWS),
        (RawParameter(8), ROWS),
        (RawParameter(8, 3), ROWS),
    ],
)
def test_what_cannot_be_traced_is_refused_and_the_rest_goes_on(model, x):
    groups, refused = found(model, x)
    assert "b" in groups
    assert len(refused["a"]) > 10
    check_removal(model, x, groups["b"], [0, 3])


class Stated(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden_dim, self.a, self.b = 8, nn.Conv2d(3, 8, 1), nn.Linear(8, 3)

    def forward(self, x):
        return self.b(self.a(x).reshape(len(x), self.hidden_dim, -1).mean(2))


def test_stated_widths_follow():
    model = Stated()
    assert check_removal(model, IMAGES, found(model, IMAGES)[0]["a"], [0, 3]).hidden_dim == 6
    assert model.hidden_dim == 8


class Members(nn.Module):
    """Parameters that belong to no layer: a token, positions, a scale."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 3, 8))
        self.scale = nn.Parameter(torch.randn(8))

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), self.a(x).unflatten(0, (-1, 2))[:, :2].repeat(2, 1, 1)], 1)
        return self.b(torch.relu(self.scale * (x + self.positions))).mean(1)


def test_bare_parameters_go_along():
    model = Members()
    small = check_removal(model, ROWS, found(model, ROWS)[0]["a"], [1, 6])
    assert [tuple(p.shape) for p in (small.token, small.positions, small.scale)] == [(1, 1, 6), (1, 3, 6), (6,)]


def test_a_trace_that_fails_costs_nothing(monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("integer division or modulo by zero")

    monkeypatch.setattr(guarded.tp.DependencyGraph, "build_dependency", fail)
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
    groups, refused = found(model, ROWS)
    assert refused == {"1": "its output is the network's output"}
    check_removal(model, ROWS, groups["0"], [1, 5])


@pytest.mark.parametrize("frozen", [slice(None), slice(0, 1)])
def test_frozen_layers_are_pruned_and_stay_frozen(frozen):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    for part in list(model)[frozen]:
        part.requires_grad_(False)
    groups, _ = found(model, ROWS)
    assert list(groups) == ["0", "2"]
    small = check_removal(model, ROWS, groups["0"], [0, 7])
    flags = [parameter.requires_grad for parameter in model.parameters()]
    assert [parameter.requires_grad for parameter in small.parameters()] == flags


def test_training_modes_come_back_module_by_module():
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(), nn.Linear(8, 3)).train()
    model[1].eval()
    CouplingGraph(model, ((ROWS,), {})).coupling("0")
    assert [module.training for module in model.modules()] == [True, True, False, True]
