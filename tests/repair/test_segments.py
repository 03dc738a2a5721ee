"""Segments of consecutive layers: what they are, and what fitting them together gives."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simprune import zoo
from simprune.api import analyze, apply, plan, reconstruct
from simprune.core.plan import Edit, Plan
from simprune.edit.effects import effects_of
from simprune.repair.gauss_newton import fit_block
from simprune.repair.reconstruct import reconstruct as repair
from simprune.repair.segments import LARGEST, find_segments, outputs_left
from simprune.trace.hooks import hooks
from simprune.trace.network import Network
from tests.structures.test_contract import plan_of

ZOO = {
    "vgg": lambda: zoo.VGG(widths=(6, 8), depths=(2, 2), hidden=12),
    "densenet": lambda: zoo.DenseNet(depths=(3, 3), growth=4, stem=6),
    "inception": lambda: zoo.Inception(widths=(4, 6), stem=6),
    "mobilenet": lambda: zoo.MobileNet(widths=(4, 6), depths=(1, 2), expansion=3, last=12),
    "unet": lambda: zoo.UNet(widths=(8, 12), groups=2),
}


class Written(nn.Module):
    """A chain whose forward pass is written out, with other names, a pool and a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.spam, self.eggs = nn.Conv2d(3, 10, 3, padding=1), nn.Conv2d(10, 12, 3, padding=1)
        self.ham = nn.Linear(12 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.eggs(F.relu(self.spam(x)))), 2)
        return self.ham(F.adaptive_avg_pool2d(x, 2).flatten(1))


class Two(nn.Module):
    """Several outputs, of which a fit to the first would spoil the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Linear(6, 16), nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.tanh(self.first(x))
        return self.left(x), self.right(x)


def lively(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    with torch.no_grad():
        model.train()(torch.randn(32, 3, 8, 8))
    return model.eval()


def segments_of(model: nn.Module, x: Tensor):
    network = Network.trace(model, x)
    once = [name for name in network.execution.sequence if name in {*network.order, *network.execution.filters}]
    return find_segments(network, once, set())


@torch.no_grad()
def error(small: nn.Module, model: nn.Module, x: Tensor) -> float:
    output = model(x)
    return float((small(x) - output).square().sum() / (output - output.mean(0)).square().sum())


@pytest.mark.parametrize("name", ZOO)
def test_segments_compute_what_the_network_computes_between_their_ends(name):
    torch.manual_seed(0)
    model, x = lively(ZOO[name]()), torch.randn(2, 3, 8, 8)
    segments = segments_of(model, x)
    assert segments
    layers = [layer for segment in segments for layer in segment.layers]
    assert len(layers) == len(set(layers))
    for segment in segments:
        assert 2 <= len(segment.layers) <= LARGEST
        inside = segment.of(model)
        assert all(inside.get_submodule(layer.removeprefix(segment.prefix)) for layer in segment.layers)
        start = model.get_submodule(segment.entry)
        last = model.get_submodule(f"{segment.chain}.{segment.children[-1]}" if segment.children else segment.name)
        entering, leaving = through(model, start, last, x)
        with torch.no_grad():
            assert torch.equal(inside.eval()(entering), leaving)


@torch.no_grad()
def through(model: nn.Module, start: nn.Module, last: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """What one module gets, and what another gives, in a pass of the model."""
    seen: list[Tensor] = []
    with hooks(
        [(start, lambda _, args, kwargs: seen.append(args[0].clone()))],
        [(last, lambda _, args, kwargs, output: seen.append(output.clone()))],
    ):
        model(x)
    return seen[0], seen[-1]


def test_names_do_not_matter_and_several_outputs_are_no_segment():
    assert [segment.layers for segment in segments_of(Written().eval(), torch.randn(2, 3, 8, 8))] == [
        ("spam", "eggs", "ham")
    ]
    assert segments_of(Two().eval(), torch.randn(2, 6)) == []
    shared = nn.Linear(6, 6)
    assert segments_of(nn.Sequential(shared, nn.Tanh(), shared), torch.randn(2, 6)) == []


def repaired_both_ways(model: nn.Module, batches: list[Tensor]) -> tuple[nn.Module, nn.Module, Plan]:
    """The model with 40 % of its macs, repaired by least squares, and blockwise; and the plan."""
    made = plan(analyze(model, batches, structures=("channels",)), budget={"macs": 0.4})
    small = apply(made, model)
    both = small, copy.deepcopy(small)
    before = copy.deepcopy(model.state_dict())
    for repaired, method in zip(both, ("least_squares", "blockwise"), strict=True):
        reconstruct(repaired, made, model, batches, method)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    return *both, made


def alike(basis: Tensor, inputs: int) -> Tensor:
    """Pictures that differ in twelve directions."""
    return (torch.randn(inputs, len(basis)) @ basis).view(-1, 3, 8, 8) / 3


@pytest.mark.parametrize("name", ["mobilenet", "written"])
def test_blockwise_brings_fresh_inputs_nearer_than_least_squares(name):
    torch.manual_seed(0)
    model, basis = lively(Written() if name == "written" else ZOO[name]()), torch.randn(12, 3 * 8 * 8)
    least_squares, blockwise, _ = repaired_both_ways(model, list(alike(basis, 288).split(48)))
    fresh = alike(basis, 192)
    assert error(blockwise, model, fresh) < 0.97 * error(least_squares, model, fresh)


def test_blockwise_brings_what_a_segment_gives_nearer_also_where_the_classifier_makes_up_for_its_error():
    torch.manual_seed(0)
    model, basis = lively(ZOO["inception"]()), torch.randn(12, 3 * 8 * 8)
    batches, fresh = list(alike(basis, 288).split(48)), alike(basis, 192)
    least_squares, blockwise, made = repaired_both_ways(model, batches)
    effects = effects_of(made, Network.trace(model, fresh))
    outputs = [through(net, net.blocks[1], net.blocks[1], fresh)[1] for net in (model, least_squares, blockwise)]
    left = outputs_left(torch.arange(0), 0, effects, *outputs[:2], 1)
    target = outputs[0][:, left]
    errors = [float((output - target).square().sum()) for output in outputs[1:]]
    assert errors[1] < 0.9 * errors[0]


def test_channels_that_are_left_of_a_concatenation_are_the_right_ones():
    torch.manual_seed(0)
    model, x = lively(ZOO["inception"]()), torch.randn(8, 3, 8, 8)
    network = Network.trace(model, x)
    edits = [Edit("channels", f"blocks.0.{branch}.conv", (1,), 4) for branch in ("point", "pooled")]
    edits += [Edit("channels", "blocks.1.point.conv", (2, 3), 6)]
    made = plan_of(model, x, *edits)
    small = apply(made, model)
    outputs = [through(net, net.blocks[0], net.blocks[0], x)[1] for net in (model, small)]
    left = outputs_left(torch.arange(3), 4, effects_of(made, network), *outputs, 1)
    assert left.tolist() == [index for index in range(16) if index not in (1, 13)]
    assert outputs_left(torch.arange(3), 4, effects_of(made, network), outputs[0], -outputs[1], 1) is None


def test_a_depthwise_layer_finds_back_to_the_weights_that_give_the_wanted_output():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU())
    model.append(nn.Conv2d(8, 4, 1)).eval()
    inputs = [torch.randn(8, 3, 6, 6) for _ in range(9)]
    with torch.no_grad():
        pairs = [(((x,), {}), model(x), 1.0) for x in inputs]
        model[1].weight += 0.2 * torch.randn_like(model[1].weight)
    before, after = fit_block(model, {"1": "2"}, pairs, rounds=4, iterations=20)
    assert after < 1e-3 * before


def test_layers_of_a_chain_are_fitted_together_only_where_the_recipe_says_so():
    torch.manual_seed(0)
    model = lively(zoo.VGG(widths=(6, 8), depths=(5, 5), hidden=12))
    batches = list(torch.randn(96, 3, 8, 8).split(16))
    made = plan_of(model, batches[0], Edit("channels", "features.0", (0, 1), 6))
    network = Network.trace(model, batches[0])
    every = {refit.layer for refit in repair(apply(made, model), made, network, batches, "blockwise")}
    some = {
        refit.layer
        for refit in repair(
            apply(made, model), made, network, batches, {"features.*": "least_squares", "*": "blockwise"}
        )
    }
    assert any(" to " in name for name in every)
    assert "classifier" in some
    assert not any(" to " in name for name in some)


def test_a_segment_that_is_too_large_for_its_memory_is_left_and_the_notes_say_so():
    torch.manual_seed(0)
    model, batches, notes = Written().eval(), list(torch.randn(32, 3, 8, 8).split(8)), []
    made = plan_of(model, batches[0], Edit("channels", "spam", (0, 1), 10))
    network, small = Network.trace(model, batches[0]), apply(made, model)
    method = {"name": "blockwise", "values": 12 * 64 * 8 // 32}
    assert [refit.layer for refit in repair(small, made, network, batches, method, notes=notes)] == ["eggs", "ham"]
    assert notes == [
        "the model was not fitted as a whole: a batch makes 6,144 entries in it; give batches of 3,072 at most"
    ]


def test_segments_that_bring_the_outputs_further_away_are_not_fitted(monkeypatch):
    torch.manual_seed(0)
    model = lively(zoo.VGG(widths=(6, 8), depths=(2, 2), hidden=12)).eval()
    x, trace = torch.randn(64, 3, 8, 8), Network(model, ((torch.randn(2, 3, 8, 8),), {}))
    wanted = plan(analyze(model, [x]), {"macs": 0.6})

    def spoil(block: nn.Module, *_: object, **__: object) -> tuple[float, float]:
        for parameter in block.parameters():
            parameter.mul_(3)
        return 1.0, 0.5

    results = []
    for method, fitting in (("least_squares", fit_block), ("blockwise", fit_block), ("blockwise", spoil)):
        monkeypatch.setattr("simprune.repair.segment_fit.fit_block", fitting)
        small, notes = apply(wanted, model), list[str]()
        repair(small, wanted, trace, [x], method, notes=notes)
        results.append(small.state_dict())
        assert any("no segment was fitted" in note for note in notes) == (fitting is spoil)
    assert all(torch.equal(value, results[2][name]) for name, value in results[0].items())
    assert not all(torch.equal(value, results[1][name]) for name, value in results[0].items())
