"""Networks with several outputs, or maps as outputs: analysis, plan, repair and checks count them all."""

import copy
import re
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import simprune as sp
from simprune.checks import Gate
from simprune.trace.answers import answer, damage_of_outputs, errors_of_inputs
from simprune.trace.cost import measure_cost
from simprune.trace.network import Network

SIZE = 8


def images(count: int, seed: int) -> list[Tensor]:
    """Smooth pictures, in batches of 16."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 3, 3, generator=generator)
    return list(F.interpolate(coarse, size=SIZE, mode="bilinear").split(16))


CALIBRATION, TEST = images(64, 0), images(64, 1)


class Net(nn.Module):
    """Two convolutions that two heads share, with a hidden layer in each; `pack` says in which form outputs come."""

    def __init__(self, pack) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.stem = nn.Conv2d(3, 12, 3, padding=1)
            self.body = nn.Conv2d(12, 16, 3, padding=1)
            self.hidden = nn.ModuleList([nn.Conv2d(16, 10, 1) for _ in range(2)])
            self.heads = nn.ModuleList([nn.Conv2d(10, 4, 1) for _ in range(2)])
        self.pack = pack

    def forward(self, x: Tensor):
        x = F.relu(self.body(F.relu(self.stem(x))))
        return self.pack(*(head(F.relu(hidden(x))) for head, hidden in zip(self.heads, self.hidden, strict=True)))


def of_equal_variance(pack) -> Net:
    """The network with both outputs scaled to the variance 1 on the calibration inputs."""
    net = Net(pack)
    pair = copy.deepcopy(net)
    pair.pack = lambda *outputs: outputs
    with torch.no_grad():
        for head, output in zip(net.heads, pair(torch.cat(CALIBRATION)), strict=True):
            rows = output.movedim(1, -1).flatten(0, -2).double()
            for parameter in head.parameters():
                parameter /= (rows - rows.mean(0)).square().sum(1).mean().sqrt()
    return net


def compressed(model: nn.Module, **options):
    """Redundancy, plan, and the repaired smaller network."""
    redundancy = sp.analyze(model, CALIBRATION, structures=("channels",))
    plan = sp.plan(redundancy, budget={"macs": 0.6})
    small = sp.apply(plan, model)
    sp.reconstruct(small, plan, model, CALIBRATION)
    return redundancy, plan, small


FORMS = {
    "tuple": lambda *outputs: outputs,
    "list in a dict": lambda *outputs: {"maps": [*outputs]},
    "with a loss": lambda a, b: {"loss": a.square().mean(), "logits": a, "aux": b},
    "in other units": lambda a, b: (1000 * a, b - 7),
    "channels last": lambda a, b: (a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)),
}


@pytest.fixture(scope="module")
def joined():
    return compressed(of_equal_variance(lambda *outputs: torch.cat(outputs, 1)))


@pytest.mark.parametrize("pack", FORMS.values(), ids=FORMS.keys())
def test_several_outputs_are_compressed_like_one_tensor_of_them_all(pack, joined):
    redundancy, plan, small = compressed(of_equal_variance(pack))
    for one, other in zip(redundancy.channels, joined[0].channels, strict=True):
        assert one.order == other.order
        assert one.damage == pytest.approx(other.damage, rel=1e-2, abs=1e-9)
    assert [(edit.name, edit.indices) for edit in plan.edits] == [(edit.name, edit.indices) for edit in joined[1].edits]
    assert plan.expected["damage"] == pytest.approx(joined[1].expected["damage"], rel=1e-2)
    for name, value in small.state_dict().items():
        assert torch.allclose(value, joined[2].state_dict()[name], rtol=1e-2, atol=1e-3), name


def test_layers_of_every_output_are_removable_and_cost_what_is_planned():
    model = Net(FORMS["list in a dict"])
    before = copy.deepcopy(model.state_dict())
    redundancy, plan, small = compressed(model)
    assert {entry.name for entry in redundancy.channels} == {"stem", "body", "hidden.0", "hidden.1"}
    assert {name for name, _ in redundancy.unprunable} == {"heads.0", "heads.1"}
    cost = measure_cost(small, Network.trace(model, CALIBRATION[0]).example)
    assert (cost.macs, cost.params) == (plan.expected["macs"], plan.expected["params"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {edit.name for edit in plan.edits} >= {"hidden.0", "hidden.1"}


def test_an_output_that_is_hard_to_predict_is_not_given_up_for_the_first_one():
    """By the first output alone everything that the second one reads would go, since it costs nothing."""
    model = Net(lambda a, b: (1e-3 * a, 1e3 * b))
    small = compressed(model)[2]
    damages = damage_of_outputs(answer(small, TEST), answer(model, TEST))
    assert max(damages.values()) < 5 * min(damages.values())


BIASED = {
    "map": lambda a, b: torch.cat([a, b], 1),
    "several maps": lambda a, b: (a, b),
    "super-resolution": lambda a, b: F.pixel_shuffle(a + b, 2),
    "depth": lambda a, b: (a + b)[:, 0],
    "tokens": lambda a, b: (a + b).flatten(2).transpose(1, 2),
    "upsampled": lambda a, b: F.interpolate(a + b, scale_factor=2, mode="bilinear"),
}


@pytest.mark.parametrize("pack", BIASED.values(), ids=BIASED.keys())
def test_a_bias_of_the_last_layer_changes_no_analysis_and_no_damage(pack):
    model = Net(pack)
    biased = copy.deepcopy(model)
    with torch.no_grad():
        for number, head in enumerate(biased.heads):
            head.bias += torch.linspace(-20, 20, 4) * (number + 1)
    (first, plan, small), (second, again, other) = compressed(model), compressed(biased)
    for one, two in zip(first.channels, second.channels, strict=True):
        assert one.order == two.order and one.damage == pytest.approx(two.damage, rel=1e-2, abs=1e-9)
    assert plan.expected["damage"] == pytest.approx(again.expected["damage"], rel=1e-2)
    measured = [
        float(errors_of_inputs(answer(reduced, TEST), answer(whole, TEST)).mean())
        for reduced, whole in ((small, model), (other, biased))
    ]
    assert measured[0] == pytest.approx(measured[1], rel=2e-2)


@pytest.mark.parametrize("pack", [FORMS["with a loss"], BIASED["map"]])
def test_expected_damage_of_maps_is_near_what_other_inputs_show(pack):
    model = Net(pack)
    _, plan, small = compressed(model)
    measured = damage_of_outputs(answer(small, TEST), answer(model, TEST))
    mean = sum(measured.values()) / len(measured)
    assert 1 / 3 < plan.expected["damage"] / mean < 3


def test_a_report_says_the_damage_of_every_output_and_a_bundle_keeps_gates_on_outputs(tmp_path):
    model = Net(lambda a, b: {"logits": a.mean((2, 3)), "pixels": b})
    gates = [Gate("disagreement", limit=0.9), Gate("relative_error", limit=0.9, output="pixels")]
    result = sp.compress(
        model, calibration=CALIBRATION, test=TEST, budget={"macs": 0.7}, structures=("channels",), gates=gates
    )
    rows = result.report["stages"]
    assert rows[0]["damages"] == {"logits": 0, "pixels": 0}
    last = rows[-1]
    assert last["damages"].keys() == {"logits", "pixels"} and last["damages"]["pixels"] > 0
    assert sum(last["damages"].values()) / 2 == pytest.approx(last["damage"])
    assert result.verdict is not None and result.verdict.results[1].gate.output == "pixels"
    sp.save(tmp_path / "bundle", result)
    page = (tmp_path / "bundle" / "report.html").read_text()
    assert "relative_error of pixels" in page and "pixels: " in page
    small = sp.load(tmp_path / "bundle", model=lambda: Net(lambda a, b: {"logits": a.mean((2, 3)), "pixels": b}))
    assert all(torch.equal(value, result.model.state_dict()[name]) for name, value in small.state_dict().items())


def test_fine_tuning_follows_all_outputs_of_the_teacher():
    teacher = Net(lambda a, b: {"logits": a.mean((2, 3)), "pixels": b})
    start = copy.deepcopy(teacher)
    with torch.no_grad():
        start.heads[1].weight.mul_(0.5)  # only the second output is wrong
    tuned = copy.deepcopy(start)
    sp.finetune(tuned, CALIBRATION, teacher=teacher, epochs=20, lr=0.001)
    before, after = (damage_of_outputs(answer(net, TEST), answer(teacher, TEST)) for net in (start, tuned))
    assert after["pixels"] < 0.7 * before["pixels"]


def test_a_score_by_the_loss_sees_layers_of_every_output():
    model = Net(lambda a, b: (a, b))
    entries = {e.name: e for e in sp.analyze(model, CALIBRATION, structures=("channels",), score="taylor").channels}
    assert sum(entries["hidden.0"].damage) > 0 and sum(entries["hidden.1"].damage) > 0


def test_an_output_of_weight_0_does_not_count():
    both, first = Net(lambda a, b: {"main": a, "aux": b}), Net(lambda a, b: {"main": a})
    weighed = {e.name: e for e in sp.analyze(both, CALIBRATION, structures=("channels",), outputs={"aux": 0}).channels}
    alone = {e.name: e for e in sp.analyze(first, CALIBRATION, structures=("channels",)).channels}
    for name, entry in alone.items():
        assert weighed[name].order == entry.order
        assert weighed[name].damage == pytest.approx(entry.damage, rel=1e-2, abs=1e-9)
    assert sum(weighed["hidden.1"].damage) == 0  # which nothing else reads


def test_the_larger_weight_of_an_output_the_nearer_it_stays_to_the_original():
    model = Net(lambda a, b: {"main": a, "aux": b})
    options = {"calibration": CALIBRATION, "test": TEST, "budget": {"macs": 0.6}, "structures": ("channels",)}
    rows = []
    for weight in (0.01, 100):
        result = sp.compress(model, outputs={"main": weight}, **options)
        rows.append(result.report["stages"][-1])
        damages, share = rows[-1]["damages"], weight / (1 + weight)
        assert rows[-1]["damage"] == pytest.approx(share * damages["main"] + (1 - share) * damages["aux"])
        assert result.report["settings"]["outputs"] == {"main": weight}
    assert rows[1]["damages"]["main"] < rows[0]["damages"]["main"]
    assert rows[1]["damages"]["aux"] > rows[0]["damages"]["aux"]


@pytest.mark.parametrize(
    "weights, message",
    [
        ({"axu": 2}, "outputs: the network has no output 'axu'; did you mean 'aux'?"),
        ({"main": 0, "aux": 0}, "outputs: every output has the weight 0; give at least one a larger one"),
        ({"aux": -1}, "outputs: expected numbers of at least 0; got -1 for aux"),
        ({"aux": "much"}, "outputs: expected numbers of at least 0; got 'much' for aux"),
        ([1, 2], "outputs: expected a mapping or null, such as {aux: 0.4}; got"),
    ],
)
def test_wrong_weights_of_outputs_are_one_line(weights, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sp.analyze(Net(lambda a, b: {"main": a, "aux": b}), CALIBRATION, outputs=weights)


def test_a_branch_that_no_output_depends_on_goes_with_the_channels_that_it_reads():
    model = Net(lambda a, b: a)  # the second head is computed, and forgotten
    redundancy, plan, small = compressed(model)
    assert {entry.name for entry in redundancy.channels} >= {"stem", "body", "hidden.0"}
    cost = measure_cost(small, Network.trace(model, CALIBRATION[0]).example)
    assert (cost.macs, cost.params) == (plan.expected["macs"], plan.expected["params"])


class Pyramid(nn.Module):
    """Feature maps of three sizes, added from coarse to fine, and two heads that run on all of them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        widths = (3, 16, 24, 32)
        self.down = nn.ModuleList([nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(widths)])
        self.side = nn.ModuleList([nn.Conv2d(width, 12, 1) for width in widths[1:]])
        self.heads = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(12, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, n, 1)) for n in (5, 4)]
        )

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        maps, sums = [], []
        for layer in self.down:
            maps.append(F.relu(layer(maps[-1] if maps else x)))
        for side, value in reversed([*zip(self.side, maps, strict=True)]):
            sums.append(side(value) + (F.interpolate(sums[-1], scale_factor=2) if sums else 0))
        return {name: [head(value) for value in sums] for name, head in zip(("cls", "box"), self.heads, strict=True)}


@pytest.mark.parametrize("share", [0.7, 0.5])
def test_expected_damage_of_a_pyramid_with_six_outputs_holds_for_fresh_inputs(share):
    model = Pyramid().eval()
    redundancy = sp.analyze(model, CALIBRATION, structures=("channels",))
    plan = sp.plan(redundancy, budget={"macs": share})
    small = sp.apply(plan, model)
    sp.reconstruct(small, plan, model, CALIBRATION)
    damages = damage_of_outputs(answer(small, TEST), answer(model, TEST))
    assert len(damages) == 6
    mean = sum(damages.values()) / 6
    assert 1 / 2 < plan.expected["damage"] / mean < 2
