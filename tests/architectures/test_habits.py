"""Habits of published networks that tools stumble over: the whole path works, and the original stays as it was."""

import copy

import pytest
import torch
from torch import nn

import simprune as sp
from simprune.structures import structure
from simprune.trace.network import Network as Traced

WIDTH = 12


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 20), nn.Linear(20, WIDTH)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x)))


class Plain(nn.Module):
    """A pre-norm block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(WIDTH), Mlp()

    def forward(self, x):
        return x + self.mlp(self.norm(x))


class Caching(Plain):
    """Keeps what it computes from a parameter, as LeViT keeps its attention biases."""

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.kept, self.seen = nn.Parameter(torch.randn(WIDTH)), {}, None

    def forward(self, x):
        if not self.kept:
            self.kept["bias"] = self.bias * 2
        self.seen = x.mean()
        return super().forward(x + 0 * self.kept["bias"])


class Keyed(Plain):
    """Keeps a tensor, and beside it the shape of the inputs that it is for, as the heads of YOLO keep their anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.shape, self.anchors = None, None

    def forward(self, x):
        if self.shape != x.shape:
            self.shape, self.anchors = x.shape, torch.linspace(-1, 1, x.shape[1]).to(x)
        return super().forward(x + self.anchors[:, None])


class Shared(Plain):
    """One module under two names, as in CoaT."""

    def __init__(self) -> None:
        super().__init__()
        self.second = self.mlp

    def forward(self, x):
        x = x + self.mlp(self.norm(x))
        return x + self.second(self.norm(x))


class Parts(nn.Module):
    """Blocks that get the halves of every input as inputs of their own, as in MobileViT."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(Plain(), Plain())
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        n, tokens, width = x.shape
        return torch.tanh(self.out(self.inner(x.reshape(2 * n, tokens // 2, width)).reshape(n, tokens, width)))


class Join(nn.Module):
    """Gets a view of a parameter as an argument, as in CaiT and PiT."""

    def forward(self, x, tokens):
        return torch.cat([x, tokens], 1)


class Network(nn.Module):
    def __init__(self, middle: type[nn.Module]) -> None:
        super().__init__()
        self.embed, self.token, self.join = nn.Linear(6, WIDTH), nn.Parameter(torch.randn(1, 1, WIDTH)), Join()
        self.blocks = nn.Sequential(Plain(), middle(), Plain())
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x):
        return self.head(self.blocks(self.join(self.embed(x), self.token.expand(len(x), 2, -1))).mean(1))


def plain(model: nn.Module) -> list[dict]:
    """What modules keep in attributes that are neither parameters, buffers nor modules, as it is now."""
    return [{k: copy.copy(v) for k, v in vars(module).items() if k[0] != "_"} for module in model.modules()]


@pytest.mark.parametrize("middle", [Plain, Caching, Keyed, Shared, Parts])
def test_the_whole_path_works_and_the_original_stays_as_it_was(middle):
    torch.manual_seed(0)
    model = Network(middle)
    calibration = [torch.randn(16, 4, 6) for _ in range(2)]
    parameters, state = dict(model.named_parameters()), copy.deepcopy(model.state_dict())
    before = plain(model)

    result = sp.compress(
        model, calibration=calibration, test=calibration, budget={"macs": 0.6}, reconstruct="blockwise"
    )
    assert result.model(calibration[0]).isfinite().all()

    after = dict(model.named_parameters())
    assert list(after) == list(parameters)
    assert all(after[name] is parameters[name] for name in after)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert plain(model) == before
    copy.deepcopy(model)


def test_blocks_of_parts_of_inputs_stay_where_others_get_whole_inputs():
    model = Network(Parts).eval()
    blocks, refused = structure("blocks").find(Traced(model, ((torch.randn(2, 4, 6),), {})))
    assert [block.name for block in blocks] == ["blocks.0", "blocks.2"]
    reasons = dict(refused)
    assert set(reasons) == {"blocks.1.inner.0", "blocks.1.inner.1"}
    assert "gets 4 parts of 2 inputs" in reasons["blocks.1.inner.0"]
