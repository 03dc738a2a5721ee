"""Maps that stand in for blocks are folded into their neighbours where that changes nothing, and nowhere else."""

import copy

import pytest
import torch
from torch import Tensor, nn

import simprune as sp
from simprune.api import apply
from simprune.core.batches import call
from simprune.core.example import describe, example_of, from_description
from simprune.core.plan import Edit, Plan, fingerprint
from simprune.edit.stand_ins import Mapped
from simprune.repair.absorb import absorb, absorbed, notes_of
from simprune.repair.stand_ins import fit_stand_ins
from simprune.trace.cost import measure_cost
from simprune.trace.network import Network
from simprune.zoo.residual import ResidualCNN
from tests.structures.architectures import BLOCKS, build

pytestmark = pytest.mark.filterwarnings("ignore:from_pretrained cannot open:UserWarning")  # no configuration says so


class Block(nn.Module):
    """x + V relu(W x), over vectors, tokens or maps."""

    def __init__(self, width: int, maps: bool = False) -> None:
        super().__init__()
        layer = (lambda a, b: nn.Conv2d(a, b, 1)) if maps else nn.Linear
        self.branch = nn.Sequential(layer(width, 10), nn.ReLU(), layer(10, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Twice(nn.Module):
    """What the block makes is read by two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.entry, self.block = nn.Sequential(nn.Linear(6, 6), nn.Tanh()), Block(6)
        self.left, self.right = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.entry(x))
        return self.left(x) * self.right(x)


def fitted(model: nn.Module, x: Tensor, *names: str, replace: str = "linear", others: tuple[Edit, ...] = ()):
    """A network with fitted stand-ins in place of blocks, and its plan."""
    model.eval()
    edits = (*(Edit("block", name, replace=replace) for name in names), *others)  # type: ignore[arg-type]
    plan = Plan(edits, fingerprint(model), describe(example_of(x)))
    small = apply(plan, model)
    fit_stand_ins(small, plan, Network(model, from_description(plan.inputs)), [x])
    return small, plan


def chain(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.4)
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return nn.Sequential(*layers)


BEHIND = {
    "linear": (lambda: chain(nn.Linear(5, 6), nn.Tanh(), Block(6), nn.Dropout(), nn.Linear(6, 3)), (40, 5), "2", "4"),
    "tokens": (lambda: chain(nn.Linear(5, 6), nn.Tanh(), Block(6), nn.Linear(6, 3)), (20, 4, 5), "2", "3"),
    "all tokens": (
        lambda: chain(nn.Linear(5, 6), nn.Tanh(), Block(6), nn.Flatten(), nn.Linear(24, 3)), (20, 4, 5), "2", "4"
    ),
    "pooled": (
        lambda: chain(
            nn.Conv2d(3, 6, 3), nn.ReLU(), Block(6, True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)
        ),
        (20, 3, 6, 6), "2", "5",
    ),
    "all positions": (
        lambda: chain(nn.Conv2d(3, 6, 3), nn.ReLU(), Block(6, True), nn.Flatten(), nn.Linear(54, 3)),
        (20, 3, 5, 5), "2", "4",
    ),
    "convolution without padding": (
        lambda: chain(nn.Conv2d(3, 6, 3), nn.ReLU(), Block(6, True), nn.AvgPool2d(2), nn.Conv2d(6, 4, 3)),
        (20, 3, 10, 10), "2", "4",
    ),
    "convolution and BatchNorm": (
        lambda: chain(
            nn.Conv2d(3, 6, 3), nn.ReLU(), Block(6, True), nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4)
        ),
        (20, 3, 6, 6), "2", "3",
    ),
    "periodic padding": (
        lambda: chain(
            nn.Conv2d(3, 6, 3), nn.ReLU(), Block(6, True), nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular")
        ),
        (20, 3, 6, 6), "2", "3",
    ),
}  # fmt: skip
BEFORE = {
    "linear": (lambda: chain(nn.Linear(5, 6), Block(6), nn.Tanh(), nn.Linear(6, 3)), (40, 5), "1", "0"),
    "convolution": (
        lambda: chain(nn.Conv2d(3, 6, 3, padding=1), Block(6, True), nn.ReLU(), nn.Conv2d(6, 4, 3)),
        (20, 3, 6, 6), "1", "0",
    ),
    "BatchNorm": (
        lambda: chain(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), Block(6, True), nn.ReLU(), nn.Conv2d(6, 4, 3)),
        (20, 3, 8, 8), "2", "0",
    ),
}  # fmt: skip
REFUSED = {
    "two readers": (Twice, (40, 6), "block"),
    "a nonlinearity on either side": (
        lambda: chain(nn.Linear(5, 6), nn.ReLU(), Block(6), nn.ReLU(), nn.Linear(6, 3)), (40, 5), "2",
    ),
    "maxima": (
        lambda: chain(nn.Conv2d(3, 6, 3), nn.ReLU(), Block(6, True), nn.MaxPool2d(2), nn.Conv2d(6, 4, 1)),
        (20, 3, 6, 6), "2",
    ),
    "padding with zeros": (
        lambda: chain(nn.Conv2d(3, 6, 3), nn.ReLU(), Block(6, True), nn.Conv2d(6, 4, 3, padding=1)),
        (20, 3, 6, 6), "2",
    ),
    "no place for the constant": (
        lambda: chain(nn.Linear(5, 6), nn.Tanh(), Block(6), nn.Linear(6, 3, bias=False)), (40, 5), "2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("replace", ["linear", "mean"])
@pytest.mark.parametrize("case", [*BEHIND.values(), *BEFORE.values()], ids=[*BEHIND, *(f"before: {b}" for b in BEFORE)])
def test_a_map_is_folded_exactly_into_its_neighbour(case, replace):
    make, shape, block, into = case
    model, x = make(), torch.randn(*shape)
    small, plan = fitted(model, x, block, replace=replace)
    before = call(small, x)
    assert (
        before - call(sp.apply(Plan((Edit("block", block),), plan.fingerprint, plan.inputs), model), x)
    ).norm() > 0.1
    found = absorb(small, plan, [x])
    assert [(entry.block, entry.folded_into) for entry in found] == [(block, into)]
    assert absorbed(small) == {block: into}
    assert not [*small.get_submodule(block).parameters()]
    torch.testing.assert_close(call(small, x), before, rtol=1e-4, atol=1e-5)
    assert fit_stand_ins(small, plan, Network(model, from_description(plan.inputs)), [x]) == []


@pytest.mark.parametrize("make, shape, block", REFUSED.values(), ids=REFUSED)
def test_a_map_stays_where_folding_would_change_the_output(make, shape, block):
    torch.manual_seed(0)
    model, x = make(), torch.randn(*shape)
    small, plan = fitted(model, x, block)
    weights, before = copy.deepcopy(small.state_dict()), call(small, x)
    (found,) = absorb(small, plan, [x])
    assert found.folded_into is None
    assert found.reason in notes_of([found])[0]
    assert absorbed(small) == {}
    assert isinstance(small.get_submodule(block), Mapped)
    assert torch.equal(call(small, x), before)
    assert all(torch.equal(value, weights[key]) for key, value in small.state_dict().items())


@pytest.mark.parametrize("replaces", [("linear", "linear"), ("mean", "linear"), ("linear", "mean"), ("mean", "mean")])
def test_stand_ins_next_to_each_other_become_one(replaces):
    model = chain(nn.Linear(5, 6), nn.ReLU(), Block(6), Block(6), nn.ReLU(), nn.Linear(6, 3))
    x = torch.randn(40, 5)
    others = (Edit("block", "3", replace=replaces[1]),)
    small, plan = fitted(model, x, "2", replace=replaces[0], others=others)
    before = call(small, x)
    found = absorb(small, plan, [x])
    assert sum(entry.folded_into is None for entry in found) == 1
    assert absorbed(small) in ({"2": "3"}, {"3": "2"})
    torch.testing.assert_close(call(small, x), before, rtol=1e-4, atol=1e-5)


def test_a_resnet_folds_its_last_block_into_the_classifier_and_keeps_those_inside(tmp_path):
    torch.manual_seed(0)
    model = ResidualCNN(widths=(8, 12), depths=(3, 3), shortcut="A").eval()
    x = torch.randn(12, 3, 8, 8)
    group = next(entry for entry in sp.analyze(model, [x], structures=("channels",)).channels if "conv1" in entry.name)
    edits = [Edit("block", name, replace="linear") for name in ("layer1.1", "layer2.2")]
    edits.append(Edit("channels", group.name, group.group.expand([0, 2]), group.group.width))
    plan = Plan(tuple(edits), fingerprint(model), describe(example_of(x)))
    result = sp.compress(model, calibration=[x], test=[x], plan=plan)
    (stays, goes) = result.report["stand_ins"]
    assert (stays["block"], stays["folded_into"]) == ("layer1.1", None)
    assert (goes["block"], goes["folded_into"]) == ("layer2.2", "linear")
    assert any("folded into linear" in note for note in result.report["notes"])
    *_, repaired, folded = result.report["stages"]
    assert folded["name"] == "maps folded"
    assert folded["macs"] < repaired["macs"]
    assert folded["damage"] == pytest.approx(repaired["damage"], rel=1e-3)
    sp.save(tmp_path / "bundle", result)
    again = sp.load(tmp_path / "bundle", model=copy.deepcopy(model))
    assert torch.equal(call(again, x), call(result.model, x))
    assert measure_cost(again, example_of(x)).macs == folded["macs"]
    sp.save(tmp_path / "again", sp.compress(model, calibration=[x], plan=Plan.load(tmp_path / "bundle" / "plan.yaml")))
    assert (tmp_path / "again" / "plan.yaml").read_bytes() == (tmp_path / "bundle" / "plan.yaml").read_bytes()


def test_neighbours_in_a_transformer_become_one_layer_and_the_list_gets_shorter(tmp_path):
    model, batch = build("llama")
    small, plan = fitted(model, batch, *BLOCKS["llama"][1:3])
    assert small.config.num_hidden_layers == 4
    before = call(small, batch)
    found = absorb(small, plan, [batch])
    assert [entry.folded_into for entry in found] == [BLOCKS["llama"][2], None]
    assert small.config.num_hidden_layers == len(small.model.layers) == 3
    torch.testing.assert_close(call(small, batch), before, rtol=1e-4, atol=1e-4)
    result = sp.compress(model, calibration=[batch], plan=plan, structures=("blocks",))
    sp.save(tmp_path / "bundle", result)
    again = sp.load(tmp_path / "bundle", model=model)
    assert torch.equal(call(again, batch), call(result.model, batch))
    assert again.config.num_hidden_layers == len(again.model.layers) == 3
    small.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "config.json").exists()


def test_linear_bottlenecks_take_maps_on_both_sides():
    model, x = build("mobilenet")
    for block, into in (("3", "2.conv.6"), ("4", "5.conv.0")):
        small, plan = fitted(model, x, block)
        before = call(small, x)
        assert [entry.folded_into for entry in absorb(small, plan, [x])] == [into]
        torch.testing.assert_close(call(small, x), before, rtol=1e-4, atol=1e-5)
