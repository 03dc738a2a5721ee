"""Every output counts as a share of its own variance, in whatever layout it comes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import simprune as sp
from simprune.trace.outputs import Rows, rows_of_outputs
from simprune.trace.sensitivity import Watcher, backpropagate

BATCHES = list(torch.randn(3, 8, 3, 6, 6, generator=torch.Generator().manual_seed(0)).unbind())


class Net(nn.Module):
    """A small convolutional network with a function of its features as output."""

    def __init__(self, head: nn.Module, tail=lambda z: z) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.head, self.tail = head, tail

    def forward(self, x: Tensor):
        return self.tail(self.head(F.relu(self.first(x))))


def gradients(model: nn.Module, batches=BATCHES, seed: int = 0) -> tuple[float, int, Tensor]:
    """Variance, rows, and the summed squares of the gradients at the first layer, per channel."""
    total = []

    def watch(_: nn.Module, __: Tensor, output: Tensor) -> None:
        output.register_hook(lambda gradient: total.append(gradient.square().sum((0, 2, 3))))

    walk = backpropagate(model, batches, [Watcher({"first": watch})], seed)
    return walk.variance, walk.count, torch.stack(total).sum(0) / (walk.variance * walk.count)


def conv(out: int, bias: float = 0.0) -> nn.Conv2d:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layer = nn.Conv2d(6, out, 1)
        torch.nn.init.normal_(layer.bias, std=bias) if bias else torch.nn.init.zeros_(layer.bias)
    return layer


TAILS = {
    "as it is": lambda z: z,
    "channels last": lambda z: z.permute(0, 2, 3, 1),
    "tokens": lambda z: z.flatten(2).transpose(1, 2),
    "one axis of positions": lambda z: z.flatten(2),
    "in a dict with a loss": lambda z: {"loss": z.square().mean(), "out": z},
}


@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS.keys())
def test_an_output_counts_the_same_in_every_layout(tail):
    variance, count, shares = gradients(Net(conv(4), tail))
    expected_variance, expected_count, expected = gradients(Net(conv(4)))
    assert count == expected_count == 24 * 36
    assert variance == pytest.approx(expected_variance)
    assert torch.allclose(shares, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "tail",
    [*TAILS.values(), lambda z: F.pixel_shuffle(z, 2), lambda z: z[:, 0], lambda z: z[:, :1].squeeze(1)],
)
def test_a_bias_of_the_last_layer_changes_nothing(tail):
    variance, _, shares = gradients(Net(conv(4, bias=30.0), tail))
    expected_variance, _, expected = gradients(Net(conv(4), tail))
    assert variance == pytest.approx(expected_variance, rel=1e-4)
    assert torch.allclose(shares, expected, rtol=1e-3)


def halves(z: Tensor) -> Tensor:
    """Both halves of the channels, each divided by the root of its variance on these batches."""
    rows = z.movedim(1, -1).flatten(0, -2)
    parts = (rows - rows.mean(0)).square().mean(0).split(2)
    return z / torch.cat([part.sum().sqrt().expand(2) for part in parts]).detach()[:, None, None]


def test_outputs_side_by_side_count_like_one_tensor_of_them_all():
    whole = [torch.cat(BATCHES)]  # one batch, so that `halves` sees all inputs
    _, _, expected = gradients(Net(conv(4), halves), whole)
    for tail in (
        lambda z: tuple(halves(z).split(2, 1)),
        lambda z: {"a": halves(z)[:, :2], "b": [100 * halves(z)[:, 2:]]},  # its scale does not matter
    ):
        variance, count, shares = gradients(Net(conv(4), tail), whole)
        assert (variance, count) == (1.0, 24 * 36)
        assert torch.allclose(shares, expected, rtol=1e-4)


def test_outputs_with_other_rows_count_once_each():
    def tail(z):
        return z, F.avg_pool2d(z, 3), z.mean((2, 3))

    def mean(net: nn.Module) -> Tensor:
        """Over several draws of random signs."""
        return torch.stack([gradients(net, seed=10 * seed)[2] for seed in range(8)]).mean(0)

    parts = torch.stack([mean(Net(conv(4), lambda z, i=i: tail(z)[i])) for i in range(3)]).mean(0)
    together = mean(Net(conv(4), tail))
    assert torch.allclose(together, parts, rtol=0.2)
    assert float(together.sum()) == pytest.approx(float(parts.sum()), rel=0.05)


def test_an_output_that_does_not_change_is_left_out():
    def tail(z):
        return z, torch.ones(len(z), 2)

    assert torch.allclose(gradients(Net(conv(4), tail))[2], gradients(Net(conv(4)))[2], rtol=1e-4)
    with pytest.raises(ValueError, match="outputs of the network are the same for all calibration inputs"):
        gradients(Net(conv(4), lambda z: (torch.ones(len(z), 2), torch.zeros(len(z), 3))))


def test_padding_is_no_row():
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 4)

        def forward(self, x, attention_mask=None):
            return self.first(x)

    x, mask = torch.randn(4, 5, 3), torch.ones(4, 5).long()
    mask[:2, 3:] = 0
    model, seen = Tokens(), []
    watch = {"first": lambda _, __, output: output.register_hook(seen.append)}
    walk = backpropagate(model, [{"x": x, "attention_mask": mask}], [Watcher(watch)])
    rows = model(x).detach()[mask.bool()].double()
    assert walk.count == 16 and walk.variance == pytest.approx(float(rows.var(0, correction=0).sum()))
    assert not seen[0][mask == 0].any() and seen[0][mask == 1].abs().eq(1).all()


def test_views_that_mix_features_with_positions_leave_the_last_axis():
    anchors = Net(conv(6), lambda z: z.view(len(z), 3, 2, 6, 6).permute(0, 3, 4, 1, 2).reshape(len(z), -1, 2))
    assert rows_of_outputs(anchors, BATCHES[0]) == {"output": Rows(-1)}
    value = torch.randn(2, 3, 4, 6)
    for rows in (Rows(1), Rows(3), Rows(None), Rows(1, 2)):
        assert torch.equal(rows.back(rows.of(value), value.shape), value)


class Selecting(nn.Module):
    """More scores for small inputs than for large ones, as detectors of keypoints select them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6))

    def forward(self, x):
        return self.layers(x)[:, : 3 if x.abs().mean() > 2 else 5]


def test_an_output_whose_size_follows_from_the_inputs_is_one_line():
    batches = [size * torch.randn(8, 4, generator=torch.Generator().manual_seed(0)) for size in (1.0, 9.0)]
    with pytest.raises(ValueError, match="output 'output': the network returns rows of .* give a module that returns"):
        sp.analyze(Selecting(), batches)
