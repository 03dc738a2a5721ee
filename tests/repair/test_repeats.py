"""Weights that several modules or calls use: refitted for all of them, or left alone and said so."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simprune.api import apply
from simprune.core.plan import Edit
from simprune.repair.reconstruct import reconstruct
from simprune.trace.execution import execution
from simprune.trace.network import Network
from tests.structures.test_contract import plan_of


class Tied(nn.Module):
    """Tokens, an MLP, and logits by the weights of the embedding."""

    def __init__(self, tie: str) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(30, 8), nn.Linear(8, 24), nn.Linear(24, 8)
        self.tie = tie
        if tie != "function":
            self.head = nn.Linear(8, 30, bias=tie == "bias")
            self.head.weight = self.embed.weight
        if tie == "memory":
            self.head.weight = nn.Parameter(self.embed.weight.data)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.down(F.gelu(self.up(x)))
        return x @ self.embed.weight.T if self.tie == "function" else self.head(x)


class Autoencoder(nn.Module):
    """A decoder that multiplies with the encoder's weight: a place, and no module."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.encode = nn.Linear(6, 20), nn.Linear(20, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.encode(F.relu(self.second(F.relu(self.first(x))))), self.encode.weight.T)


class Heads(nn.Module):
    """One head, run on maps of two sizes; with its own BatchNorm, or one per size, or two heads that share tensors."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.stem, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, padding=1)
        self.hidden = nn.Conv2d(8, 12, 3, padding=1, bias=how in ("plain", "twins"))
        self.out = nn.Conv2d(12, 5, 1)
        if how in ("norm", "norms"):
            self.norms = nn.ModuleList([nn.BatchNorm2d(12) for _ in range(2 if how == "norms" else 1)])
        if how == "twins":
            self.twin = nn.Conv2d(12, 5, 1)
            self.twin.weight, self.twin.bias = self.out.weight, self.out.bias

    def head(self, x: Tensor, level: int) -> Tensor:
        x = self.hidden(x)
        x = self.norms[level % len(self.norms)](x) if self.how in ("norm", "norms") else x
        return (self.twin if self.how == "twins" and level else self.out)(F.relu(x)).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        large = F.relu(self.stem(x))
        return torch.cat([self.head(large, 0), self.head(F.relu(self.down(large)), 1)], 1)


class Shared(nn.Module):
    """The same residual MLP run four times over, as in ALBERT."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down, self.head = nn.Linear(6, 8), nn.Linear(8, 24), nn.Linear(24, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for _ in range(4):
            x = x + 0.5 * self.down(torch.tanh(self.up(x)))
        return self.head(x)


class Recurrent(nn.Module):
    """A convolutional LSTM: its gates come from one layer, which runs on the state that it made itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid = nn.Conv2d(2, 10, 3, padding=1), nn.Conv2d(10, 6, 3, padding=1)
        self.gates, self.head = nn.Conv2d(12, 24, 3, padding=1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = cell = x.new_zeros(len(x), 6, *x.shape[-2:])
        for step in x.unbind(1):
            inside = torch.cat([F.relu(self.mid(F.relu(self.stem(step)))), hidden], 1)
            i, f, o, g = self.gates(inside).chunk(4, 1)
            cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
            hidden = torch.sigmoid(o) * torch.tanh(cell)
        return self.head(hidden.mean((2, 3)))


class SharedNorm(nn.Module):
    """Two convolutions in front of one BatchNorm; and a layer that a BatchNorm and a shortcut read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = (nn.Conv2d(i, 8, 1, bias=False) for i in (3, 8, 8))
        self.norm, self.join = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1, bias=False)
        self.after, self.head = nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = self.join(F.relu(self.norm(self.a(x)) + self.norm(self.b(x))))
        return self.head((x + F.relu(self.after(x))).mean((2, 3)))


def made(model: nn.Module) -> nn.Module:
    """The model with lively BatchNorms, in evaluation mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean)
    return model.eval()


@torch.no_grad()
def error(small: nn.Module, model: nn.Module, x: Tensor) -> float:
    return float((small(x) - model(x)).square().sum() / model(x).square().sum())


def repaired(model: nn.Module, batches: list[Tensor], *edits: Edit, method: str = "least_squares"):
    """The pruned network, the same repaired, the layers that were refitted, and the notes."""
    network = Network.trace(model, batches[0])
    plan = plan_of(model, batches[0], *edits)
    small, notes = apply(plan, model), []
    pruned = copy.deepcopy(small)
    refits = reconstruct(small, plan, network, batches, method, notes=notes)
    return pruned, small, {refit.layer for refit in refits}, notes


@pytest.mark.parametrize("method", ["least_squares", "fold"])
@pytest.mark.parametrize("tie", ["module", "bias", "memory", "function"])
def test_a_head_tied_to_the_embedding_stays_and_the_notes_say_so(tie, method):
    torch.manual_seed(0)
    model = Tied(tie).eval()
    batches = [torch.randint(30, (8, 7)) for _ in range(4)]
    pruned, small, refitted, notes = repaired(model, batches, Edit("channels", "up", range(9), 24), method=method)
    assert torch.equal(small.embed.weight, model.embed.weight)
    if tie != "function":
        assert torch.equal(small.head.weight, model.head.weight)
    if method == "least_squares":
        assert refitted == {"down"}
        assert error(small, model, torch.cat(batches)) < error(pruned, model, torch.cat(batches))
        assert any("head was not refitted: its weight is also used by embed" in note for note in notes) == (
            tie != "function"
        )


def test_a_weight_that_the_model_multiplies_with_elsewhere_stays():
    torch.manual_seed(0)
    model, batches = Autoencoder().eval(), [torch.randn(32, 6) for _ in range(2)]
    pruned, small, refitted, notes = repaired(model, batches, Edit("channels", "first", (0, 1), 20))
    assert refitted == {"second"}
    assert torch.equal(small.encode.weight, pruned.encode.weight)
    assert notes == [
        "encode was not refitted: its weight is also used by the model itself, which no refit of encode fits"
    ]


@pytest.mark.parametrize("how", ["plain", "norms", "norm", "twins"])
def test_a_layer_that_runs_more_than_once_is_refitted_to_all_its_calls(how):
    torch.manual_seed(0)
    model, batches = made(Heads(how)), [torch.randn(16, 3, 8, 8) for _ in range(6)]
    edits = [Edit("channels", "stem", (0, 1), 8), Edit("channels", "hidden", (0, 1, 2), 12)]
    pruned, small, refitted, notes = repaired(model, batches, *edits)
    assert {"down", "hidden", "out"} <= refitted
    assert not notes
    x = torch.randn(64, 3, 8, 8)
    for half in (slice(0, 5), slice(5, 10)):  # every call by itself
        with torch.no_grad():
            before, after = ((net(x)[:, half] - model(x)[:, half]).square().sum() for net in (pruned, small))
        assert after < 0.5 * before
    if how == "twins":
        assert small.twin.weight is small.out.weight


@pytest.mark.parametrize("how", ["plain", "norms", "norm"])
def test_a_duplicate_in_a_layer_that_runs_twice_is_repaired_exactly(how):
    torch.manual_seed(0)
    model = made(Heads(how))
    twins = [tensor for name, tensor in model.named_parameters() if name.startswith(("hidden", "norms"))]
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.startswith(("hidden", "norms")) and name.endswith("bias"):
                tensor[0] = 3.0  # alive behind the ReLU
        for tensor in [*twins, *(b for n, b in model.named_buffers() if n.startswith("norms") and b.ndim)]:
            tensor[1].copy_(tensor[0])
    batches = [torch.randn(32, 3, 8, 8) for _ in range(8)]
    pruned, small, _, _ = repaired(
        model, batches, Edit("channels", "hidden", (0,), 12), method={"name": "least_squares", "ridge": 1e-9}
    )
    x = torch.randn(32, 3, 8, 8)
    assert error(pruned, model, x) > 1e-4
    assert error(small, model, x) < 1e-8


def test_layers_of_a_block_that_is_shared_are_refitted_and_come_nearer():
    torch.manual_seed(0)
    model, batches = Shared().eval(), [torch.randn(64, 6) for _ in range(4)]
    pruned, small, refitted, notes = repaired(model, batches, Edit("channels", "up", range(10), 24))
    assert "down" in refitted
    assert not notes
    x = torch.randn(256, 6)
    assert error(small, model, x) < 0.5 * error(pruned, model, x)


def test_layers_of_a_recurrent_network_are_refitted_and_come_nearer():
    torch.manual_seed(0)
    model, batches = Recurrent().eval(), [torch.randn(16, 4, 2, 6, 6) for _ in range(4)]
    pruned, small, refitted, notes = repaired(model, batches, Edit("channels", "stem", range(4), 10))
    assert {"mid", "gates", "head"} <= refitted
    assert not notes
    assert torch.equal(small.stem.weight, pruned.stem.weight)  # its inputs are what they were
    x = torch.randn(64, 4, 2, 6, 6)
    assert error(small, model, x) < 0.7 * error(pruned, model, x)


def test_means_that_are_not_a_layers_own_stay_and_the_notes_say_so():
    torch.manual_seed(0)
    model = made(SharedNorm())
    batches = [torch.randn(16, 3, 6, 6) for _ in range(4)]
    pruned, small, refitted, notes = repaired(model, batches, Edit("channels", "stem", (0, 1, 2), 8))
    assert {"a", "b", "join", "head"} == refitted
    for norm in ("norm", "after"):
        assert torch.equal(small.get_submodule(norm).running_mean, pruned.get_submodule(norm).running_mean)
    assert notes == [
        "a, b: fitted without an intercept, because the mean of norm is not theirs alone",
        "join: fitted without an intercept, because the mean of after is not theirs alone",
    ]
    assert error(small, model, batches[0]) < error(pruned, model, batches[0])


def test_execution_tells_calls_readers_and_other_uses():
    seen = execution(made(Heads("norm")), ((torch.zeros(2, 3, 8, 8),), {}))
    assert seen.calls == ("stem", "hidden", "out", "down", "hidden", "out")
    assert seen.order == ["stem", "down"]
    assert seen.means == {"hidden": ("norms.0",)}
    assert not seen.elsewhere
    seen = execution(made(SharedNorm()), ((torch.zeros(2, 3, 6, 6),), {}))
    assert seen.means == {}
    assert seen.lent == {"a": ("norm",), "b": ("norm",), "join": ("after",)}
    assert execution(Tied("module"), ((torch.zeros(2, 3).long(),), {})).elsewhere == {"head": ("embed",)}
