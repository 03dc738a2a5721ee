"""Halves of residual blocks are fitted to the stream: what goes is made up for before it and behind it."""

import pytest
import torch
from torch import nn

import simprune as sp
from simprune.core.example import describe, example_of
from simprune.core.plan import Edit, Plan, fingerprint
from simprune.core.structures import NotPrunable
from simprune.edit.effects import effects_of
from simprune.repair.halves import Passage, find_halves
from simprune.structures._candidates import branches_of
from simprune.trace.network import Network
from simprune.trace.shortcuts import find_shortcuts
from simprune.zoo.residual import ResidualCNN


class Half(nn.Module):
    """A normalisation, a layer, a nonlinearity unless there is none, and a layer that adds to the stream."""

    def __init__(self, width: int, linear: bool) -> None:
        super().__init__()
        self.first = nn.Linear(width, width, bias=False)
        self.act = nn.Identity() if linear else nn.Tanh()
        self.last = nn.Linear(width, width, bias=False)

    def forward(self, x):
        return self.last(self.act(self.first(x)))


class Layer(nn.Module):
    def __init__(self, width: int, linear: bool) -> None:
        super().__init__()
        self.attention, self.mlp = Half(width, linear), Half(width, linear)

    def forward(self, x):
        x = x + self.attention(x)
        return x + self.mlp(x)


class Stream(nn.Module):
    def __init__(self, layers: int = 4, width: int = 8, linear: bool = True) -> None:
        super().__init__()
        self.embed = nn.Linear(width, width)
        self.layers = nn.ModuleList(Layer(width, linear) for _ in range(layers))
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def plan_of(model, batch, *names):
    edits = (Edit("block", name, replace="zero" if name.count(".") > 1 else "identity") for name in names)
    return Plan(tuple(edits), fingerprint(model), describe(example_of(batch)))


def error(model, small, x):
    with torch.no_grad():
        wanted = model(x)
        return float((small(x) - wanted).square().sum() / wanted.square().sum())


@pytest.mark.parametrize(
    "gone",
    [
        ["layers.2"],
        ["layers.1", "layers.2"],
        ["layers.3"],
        ["layers.2", "layers.3"],
        ["layers.0"],
        ["layers.2.attention"],
        ["layers.2.mlp"],
        ["layers.3.mlp"],
        ["layers.1.attention", "layers.1.mlp", "layers.2"],
    ],
)
def test_where_all_is_linear_one_layer_makes_up_for_what_goes(gone):
    torch.manual_seed(0)
    model, x = Stream().eval(), torch.randn(80, 6, 8)
    plan = plan_of(model, x, *gone)
    small = sp.apply(plan, model)
    assert error(model, small, x) > 1e-3
    refits = sp.reconstruct(small, plan, model, x.split(20), {"name": "least_squares", "ridge": 1e-9})
    assert error(model, small, x) < 1e-6
    assert all(refit.layer.endswith(".last") or refit.layer == "head" for refit in refits)


def test_layers_that_only_feed_a_half_stay_as_they_are():
    torch.manual_seed(0)
    model, x = Stream(linear=False).eval(), torch.randn(80, 6, 8)
    plan = plan_of(model, x, "layers.1")
    small = sp.apply(plan, model)
    before = {name: value.clone() for name, value in small.state_dict().items()}
    plain = error(model, small, x)
    sp.reconstruct(small, plan, model, x.split(20))
    changed = {name for name, value in small.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert not any(".first." in name for name in changed)
    assert "layers.0.mlp.last.weight" in changed  # the last layer before the gap
    assert error(model, small, x) < plain


def test_what_a_fitted_map_stands_in_for_is_not_made_up_for_again():
    torch.manual_seed(0)
    model, x = Stream().eval(), torch.randn(80, 6, 8)
    plan = Plan((Edit("block", "layers.1", replace="linear"),), fingerprint(model), describe(example_of(x)))
    small = sp.apply(plan, model)
    before = small.layers[0].mlp.last.weight.clone()
    sp.reconstruct(small, plan, model, x.split(20))
    assert torch.equal(small.layers[0].mlp.last.weight, before)
    assert error(model, small, x) < 1e-6


def test_an_error_counts_in_relation_to_the_size_of_the_stream():
    """Tokens that are a thousand times as large as the others do not decide what is fitted."""
    torch.manual_seed(0)
    model = Stream(linear=False).eval()
    x = torch.randn(80, 6, 8)
    x[:, 0] *= 1000
    plan = plan_of(model, x, "layers.1")
    small = sp.apply(plan, model)

    def relative(net):
        with torch.no_grad():
            wanted = model(x)
            return float((net(x) - wanted)[:, 1:].square().sum() / wanted[:, 1:].square().sum())

    before = relative(small)
    sp.reconstruct(small, plan, model, x.split(20))
    assert relative(small) < 0.5 * before


def test_the_stream_before_and_behind_every_half_is_the_networks_own():
    torch.manual_seed(0)
    model, x = Stream(linear=False).eval(), torch.randn(4, 6, 8)
    plan = plan_of(model, x, "layers.1.attention", "layers.2")
    network = Network(model, example_of(x))
    small = sp.apply(plan, model)
    layers = [name for name, part in small.named_modules() if isinstance(part, nn.Linear)]
    halves = find_halves(small, network, layers, effects_of(plan, network).dropped)
    assert {*halves.layers} == {
        *(f"layers.{n}.{half}.last" for n in (0, 3) for half in ("attention", "mlp")),
        "layers.1.mlp.last",
    }
    assert halves.successors == {"layers.0": "layers.1", "layers.1": "layers.3"}
    assert {*halves.before_gaps} == {"layers.0.mlp.last", "layers.1.mlp.last"}
    with torch.no_grad():
        stream = model.embed(x)
        half = halves.layers["layers.0.attention.last"]
        every = torch.arange(8)
        given, goal = model.layers[0].attention(stream), model.layers[0](stream)
        calls = [(((stream,), {}), ((stream,), {}))]
        passage = Passage(calls, {"layers.0.attention.last": [given]}, [goal])
        passage.reach("layers.0.attention.last", half)
        target, size = half.target(passage.wanted[0], passage.streams[0], every)
        assert torch.allclose(size, (stream + given).square().mean(-1, keepdim=True).sqrt())
        assert torch.allclose(target, given, atol=1e-6)
        inputs = [small.layers[0].attention.act(small.layers[0].attention.first(stream))]
        small.layers[0].attention.last.weight *= 2  # what the fit has changed counts for the halves behind it
        passage.leave("layers.0.attention.last", half, small.layers[0].attention.last, inputs, every)
        half = halves.layers["layers.0.mlp.last"]
        passage.reach("layers.0.mlp.last", half)
        target, _ = half.target(passage.wanted[0], passage.streams[0], every)
        assert torch.allclose(target, goal - stream - 2 * given, atol=1e-5)
        assert torch.allclose(halves.arrivals["layers.1"](goal), goal + model.layers[1].attention(goal), atol=1e-6)


class PostNorm(nn.Module):
    """A layer whose output, times a factor, is added to the stream before a normalisation, as in BERT."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.dense, self.norm, self.factor = nn.Linear(6, 8), nn.LayerNorm(8), factor

    def forward(self, hidden, stream):
        return self.norm(self.factor * self.dense(hidden) + stream)


class Encoder(nn.Module):
    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.first, self.output, self.head = nn.Linear(8, 6), PostNorm(factor), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.output(torch.tanh(self.first(x)), x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_added_before_a_normalisation_is_what_the_shortcut_carries(dtype):
    torch.manual_seed(0)
    model, x, other = Encoder().to(dtype).eval(), torch.randn(3, 4, 8).to(dtype), torch.randn(3, 4, 8).to(dtype)
    shortcut = find_shortcuts(model, Network(model, example_of(x)).block_calls, ["output.dense"])["output.dense"]
    assert shortcut.module == "output"
    hidden = torch.zeros(3, 4, 6)
    drift = shortcut.drift(((hidden, x), {}), ((hidden, other[..., ::2]), {}), torch.arange(8)[::2])
    assert torch.equal(drift, (x - other)[..., ::2])


def test_a_scaled_output_before_a_normalisation_has_no_shortcut():
    model = Encoder(factor=0.5).eval()
    assert not find_shortcuts(model, Network(model, example_of(torch.randn(2, 4, 8))).block_calls, ["output.dense"])


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_a_block_that_changes_the_shape_of_its_stream_has_no_halves(shortcut):
    torch.manual_seed(0)
    model = ResidualCNN(in_channels=1, widths=(4, 8), depths=(2, 2), shortcut=shortcut).eval()
    x = torch.randn(8, 1, 8, 8)
    network = Network.trace(model, x)
    with pytest.raises(NotPrunable, match="shape of its output"):
        branches_of(model, "layer2.0", network.visits["layer2.0"])
    made = sp.plan(sp.analyze(model, [x], structures=("channels",)), {"macs": 0.7})
    assert sp.reconstruct(sp.apply(made, model), made, model, [x])
