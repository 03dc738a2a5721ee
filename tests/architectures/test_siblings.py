"""Habits that torch-pruning's trace does not see: gates by comparisons, mixed positions, layers that nobody reads."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import simprune as sp
from simprune.core.batches import all_tensors


class Gate(nn.Module):
    """Entries pass by the sign of another layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.sign, self.mid, self.head = (
            nn.Linear(*pair) for pair in ((6, 16), (6, 16), (16, 16), (16, 3))
        )

    def forward(self, x: Tensor) -> Tensor:
        value = self.value(x)
        return self.head(self.mid(torch.where(self.sign(x) > 0, value, 0.1 * value)).relu())


class Waves(nn.Module):
    """Dilated convolutions with gates; what the last residual layer gives is never read, as in WaveNet."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv1d(1, 8, 1), nn.Conv1d(6, 4, 1)
        self.gates = nn.ModuleList([nn.Conv1d(8, 16, 2, dilation=step) for step in (1, 2)])
        self.residual = nn.ModuleList([nn.Conv1d(8, 8, 1) for _ in range(2)])
        self.skip = nn.ModuleList([nn.Conv1d(8, 6, 1) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.first(x), torch.zeros(())
        for gate, residual, skip in zip(self.gates, self.residual, self.skip, strict=True):
            a, b = gate(F.pad(x, (gate.dilation[0], 0))).chunk(2, 1)
            z = a.tanh() * b.sigmoid()
            total, x = total + skip(z), x + residual(z)
        return self.head(total.relu())


class Mixer(nn.Module):
    """Linear layers over positions, of which torch-pruning takes positions for channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 12), nn.Linear(12, 3)
        self.over, self.back = nn.Linear(9, 18), nn.Linear(18, 9)
        self.wide, self.narrow = nn.Linear(12, 24), nn.Linear(24, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.back(F.gelu(self.over(x.transpose(1, 2)))).transpose(1, 2)
        return self.head((x + self.narrow(F.gelu(self.wide(x)))).mean(1))


class Complex(nn.Module):
    """A complex output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mid, self.real, self.imaginary = (
            nn.Linear(*pair) for pair in ((6, 16), (16, 16), (16, 4), (16, 4))
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.mid(self.first(x).relu()).relu()
        return torch.complex(self.real(h), self.imaginary(h))


class Attended(nn.Module):
    """A map of one channel weighs the positions of all channels, as in a U-Net with attention."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mid = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 16, 3, padding=1)
        self.map, self.head = nn.Conv2d(12, 1, 1), nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.head(self.mid(x * self.map(x).sigmoid()).relu())


class Sampled(nn.Module):
    """Maps sampled at places that a layer gives, as deformable layers do, which have no forward derivative in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mid = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.places, self.head = nn.Conv2d(8, 2, 1), nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        plain = F.affine_grid(torch.eye(2, 3).expand(len(x), 2, 3), list(x.shape), align_corners=False)
        x = F.grid_sample(x, plain + 0.1 * self.places(x).permute(0, 2, 3, 1).tanh(), align_corners=False)
        return self.head(self.mid(x).relu())


class Recurrent(nn.Module):
    """A convolutional LSTM, whose state is zeros before its layer has given anything."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.gates, self.head = 8, nn.Conv2d(2 + 8, 32, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        state = cell = x.new_zeros(len(x), self.hidden, *x.shape[-2:])
        for frame in x.unbind(1):
            i, f, g, o = self.gates(torch.cat([frame, state], 1)).chunk(4, 1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            state = o.sigmoid() * cell.tanh()
        return self.head(state)


SHAPES = {
    Gate: (6,),
    Waves: (1, 12),
    Mixer: (9, 6),
    Complex: (6,),
    Attended: (3, 6, 6),
    Sampled: (3, 6, 6),
    Recurrent: (3, 2, 4, 4),
}
PRUNED = {
    Gate: {"value", "mid"},
    Waves: {"gates.0"},
    Mixer: {"over", "wide"},
    Complex: {"first", "mid"},
    Attended: {"first", "mid"},
    Sampled: {"mid"},
    Recurrent: {"gates"},
}


@pytest.mark.parametrize("kind", SHAPES)
def test_the_whole_path_works_and_the_original_stays_as_it_was(kind):
    torch.manual_seed(0)
    model = kind().eval()
    batches, state = list(torch.randn(32, *SHAPES[kind]).split(8)), copy.deepcopy(model.state_dict())
    redundancy = sp.analyze(model, batches)
    names = {member for part in redundancy.channels for member in (part.name, *part.group.producers)}
    assert names >= PRUNED[kind]
    plan = sp.plan(redundancy, budget={"macs": 0.7})
    small = sp.apply(plan, model)
    sp.reconstruct(small, plan, model, batches, "blockwise")
    with torch.no_grad():
        outputs, expected = (all_tensors(net(batches[0])) for net in (small, model))
    assert {name: value.shape for name, value in outputs.items()} == {n: v.shape for n, v in expected.items()}
    exported = torch.export.export(small, (batches[0],)).module()
    torch.testing.assert_close(exported(batches[0]), small(batches[0]))
    sum(value.abs().sum() for value in all_tensors(small.train()(batches[0])).values()).backward()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


class OneDict(nn.Module):
    """Takes all inputs in one dict."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.facts, self.head = nn.Linear(6, 16), nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"logits": self.head((self.image(batch["image"]) + self.facts(batch["facts"])).relu())}


def one_dict() -> nn.Module:
    torch.manual_seed(0)
    return OneDict().eval()


def test_a_model_that_takes_one_dict_is_pruned_and_reopened_and_an_error_says_how_to_give_it(tmp_path):
    inputs = [{"image": torch.randn(16, 6), "facts": torch.randn(16, 4)} for _ in range(3)]
    with pytest.raises(ValueError, match=r"takes the whole dict as its one argument: give .* \(\(dict,\), labels\)"):
        sp.analyze(one_dict(), inputs)
    batches = [((values,), None) for values in inputs]
    result = sp.compress(one_dict(), calibration=batches, budget={"macs": 0.6}, structures=("channels",))
    assert result.model.head.in_features < 16
    sp.save(tmp_path / "bundle", result)
    reopened = sp.load(tmp_path / "bundle", model=one_dict)
    assert torch.equal(reopened(inputs[0])["logits"], result.model(inputs[0])["logits"])


class Octave(nn.Conv2d):
    """A convolution of details, and of what they are around, which cuts its weight as octave convolutions do."""

    def forward(self, fine: Tensor, coarse: Tensor | None = None) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        half = self.out_channels // 2
        weight = self.weight if coarse is None else self.weight[:, : fine.shape[1]]
        first, second = F.conv2d(fine, weight, padding=1).split(half, 1)
        if coarse is not None:
            second = F.avg_pool2d(second, 2) + F.conv2d(coarse, self.weight[half:, fine.shape[1] :], padding=1)
            return first, second
        return first, F.avg_pool2d(second, 2)


class Octaves(nn.Module):
    """Octave convolutions between others, and a shuffle that torch-pruning does not follow."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.split = nn.Conv2d(3, 12, 3, padding=1), Octave(12, 16, 3)
        self.mixed, self.last = Octave(16, 16, 3), nn.Conv2d(8, 12, 3, padding=1)
        self.mid, self.head = nn.Conv2d(12, 12, 1), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        fine, coarse = self.split(self.first(x).relu())
        fine, coarse = self.mixed(fine.relu(), coarse.relu())
        fine = self.last(fine.relu()).unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        return self.head(torch.cat([self.mid(fine).relu().mean((2, 3)), coarse.mean((2, 3))], 1))


def test_layers_that_take_or_return_several_tensors_stay_and_cost_no_other_its_channels():
    torch.manual_seed(0)
    model = Octaves().eval()
    batches = [torch.randn(16, 3, 8, 8) for _ in range(3)]
    redundancy = sp.analyze(model, batches[:2])
    reasons = dict(redundancy.unprunable)
    assert {"split", "mixed"} <= {name for names in reasons for name in names.split(", ")}
    assert {"last", "mid"} <= {scored.group.name for scored in redundancy.channels}
    result = sp.compress(model, calibration=batches[:2], test=batches[2:], budget={"macs": 0.95})
    assert result.model(batches[2]).shape == (16, 4)
