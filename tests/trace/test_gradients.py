"""Features and gradients of one backward pass, against autograd by hand and finite differences."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from simprune.trace.capture import capture
from simprune.trace.gradients import capture_gradients, soft_log_likelihood
from simprune.trace.sites import Site
from tests.networks import build

CROSS_ENTROPY = lambda z, y: F.cross_entropy(z, y, reduction="none")  # noqa: E731


@pytest.fixture
def network():
    model, x = build("Residual")
    return model.double(), x.double()


def state(model):
    return (
        [module.training for module in model.modules()],
        [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        copy.deepcopy(dict(model.named_buffers())),
        torch.backends.mha.get_fastpath_enabled(),
    )


def test_features_are_those_of_capture(network):
    model, x = network
    sites = [Site("stem", "flatten"), Site("blocks.0"), Site("head", side="input")]
    features, gradients = capture_gradients(model, [x[:5], x[5:]], sites)
    expected = capture(model, [x[:5], x[5:]], sites)
    assert list(features) == list(gradients) == list(expected)
    for name, rows in expected.items():
        assert torch.equal(features[name], rows)
        assert gradients[name].shape == rows.shape


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("loss", [soft_log_likelihood, CROSS_ENTROPY, lambda z, y: z[:, 2]])
def test_gradients_are_those_of_each_input_alone(network, loss, frozen):
    model, x = network
    model.requires_grad_(not frozen)
    labels = torch.arange(12) % 5
    sites = [Site("stem", "flatten"), Site("blocks.0", "flatten"), Site("head", side="input")]
    _, gradients = capture_gradients(model, [(x[:7], labels[:7]), (x[7:], labels[7:])], sites, loss)
    for i in range(12):
        stem = model.stem(x[i : i + 1]).detach().requires_grad_()
        block = model.blocks[0](stem)
        pooled = model.blocks[1](block).mean((2, 3))
        number = loss(model.head(pooled), labels[i : i + 1]).sum()
        by_hand = torch.autograd.grad(number, [stem, block, pooled])
        for name, expected in zip(gradients, by_hand, strict=True):
            assert torch.allclose(gradients[name][i], expected.flatten(), rtol=1e-9, atol=1e-14)


def test_the_default_is_the_published_scalar():
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    p = logits.softmax(1)
    q = p.detach().sqrt() / p.detach().sqrt().sum(1, keepdim=True)
    expected = (q * p.log()).sum(1)
    assert torch.allclose(soft_log_likelihood(logits), expected)
    assert torch.allclose(*(torch.autograd.grad(v.sum(), logits)[0] for v in (soft_log_likelihood(logits), expected)))


def test_layouts_and_finite_differences(network):
    model, x = network
    loss = lambda z, _: z[:, 1].sin()  # noqa: E731
    found = {
        layout: capture_gradients(model, [x], [Site("stem", layout)], loss)[1]["stem"]
        for layout in ("flatten", "positions", "pool")
    }
    maps = found["flatten"].view(12, 8, 8, 8)
    assert torch.equal(found["positions"].view(12, 8, 8, 8), maps.permute(0, 2, 3, 1))
    assert torch.allclose(found["pool"], maps.sum((2, 3)))
    step = 1e-6

    def number(shift):
        stem = model.stem(x)
        stem[:, 3] += shift  # all positions of one channel together
        return loss(model.head(model.blocks(stem).mean((2, 3))), None)

    with torch.no_grad():
        slope = (number(step) - number(-step)) / (2 * step)
    assert torch.allclose(found["pool"][:, 3], slope, rtol=1e-3, atol=1e-8)  # ReLU has kinks


def test_linear_layers_have_channels_last():
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3))
    x = torch.randn(5, 2, 3, 4)
    for layout, shape in (("pool", (5, 6)), ("positions", (30, 6))):
        features, gradients = capture_gradients(model, [x], [Site("0", layout)])
        assert torch.equal(features["0"], capture(model, [x], [Site("0", layout)])["0"])
        assert gradients["0"].shape == shape


def test_modules_that_work_in_place_change_neither_features_nor_gradients():
    def network(inplace):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace), nn.Linear(6, 3))

    x = torch.randn(5, 4)
    kept = x.clone()
    sites = [Site("0", side="input"), Site("0"), Site("1")]
    for a, b in zip(
        capture_gradients(network(True), [x], sites), capture_gradients(network(False), [x], sites), strict=True
    ):
        assert all(torch.equal(a[name], b[name]) for name in a)
    first = nn.Sequential(nn.ReLU(True), nn.Linear(4, 3))
    capture_gradients(first, [x], [Site("1")])
    assert torch.equal(x, kept)
    assert not x.requires_grad


class Structured(nn.Module):
    """Inputs as keywords, token ids, outputs in a tuple and a dict."""

    def __init__(self):
        super().__init__()
        self.embed, self.rnn, self.head = nn.Embedding(9, 4), nn.RNN(4, 3, batch_first=True), Head()

    def forward(self, ids, scale=1.0):
        states, _ = self.rnn(self.embed(ids))
        return self.head(states * scale)["logits"]


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(3, 2)

    def forward(self, states):
        return {"logits": self.out(states[:, -1]), "states": states}


def test_tuples_dicts_and_token_ids():
    model = Structured().requires_grad_(False)
    batch = {"ids": torch.randint(9, (5, 4)), "scale": 2.0, "labels": torch.zeros(5, dtype=torch.long)}
    sites = [Site("embed", "flatten"), Site("rnn", "flatten"), Site("head", "flatten")]
    features, gradients = capture_gradients(model, [batch], sites, CROSS_ENTROPY)
    logits = features["head"].requires_grad_()
    expected = torch.autograd.grad(F.cross_entropy(logits, batch["labels"], reduction="sum"), logits)[0]
    assert torch.allclose(gradients["head"], expected)
    assert gradients["rnn"].shape == (5, 12)
    assert gradients["rnn"][:, :9].eq(0).all()  # only the last state is read
    assert gradients["embed"].ne(0).any()
    with pytest.raises(ValueError, match="embed:input: expected floating-point"):
        capture_gradients(model, [batch], [Site("embed", side="input")])


def test_transformer_parts_show():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(32, 3))
    _, gradients = capture_gradients(model, [torch.randn(3, 4, 8)], [Site("0.linear1", "flatten")])
    assert gradients["0.linear1"].shape == (3, 64)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_works_whatever_the_caller_switched_off(network, around):
    model, x = network
    expected = capture_gradients(model, [x], [Site("stem")])[1]["stem"]
    with around():
        found = capture_gradients(model, [x * 1], [Site("stem")])[1]["stem"]
    assert torch.equal(found, expected)


def test_everything_is_as_before(network):
    model, x = network
    model.train()
    model.stem[1].eval()
    model.head.weight.requires_grad_(False)
    model.head.bias.grad = torch.ones(5, dtype=torch.float64)
    before = state(model)
    capture_gradients(model, [x], [Site("stem")])
    failures = [
        lambda: capture_gradients(model, [x, x[:, :2]], [Site("stem")]),
        lambda: capture_gradients(model, [x], [Site("stem"), Site("nowhere")]),
        lambda: capture_gradients(model, [x], [Site("stem")], lambda z, y: z),
        lambda: capture_gradients(model, [x], [Site("stem")], lambda z, y: 1 / 0),
    ]
    for fail in failures:
        with pytest.raises((RuntimeError, KeyError, ValueError, ZeroDivisionError)):
            fail()
    for a, b in zip(state(model), before, strict=True):
        if isinstance(b, dict):
            assert all(torch.equal(a[name], b[name]) for name in b)
        else:
            assert str(a) == str(b)


@pytest.mark.parametrize(
    "sites, loss, message",
    [
        ([Site("stem"), Site("stem", "flatten")], soft_log_likelihood, "stem more than once"),
        ([Site("stem")], lambda z, y: z, r"one number per input, shape \(12,\); got \(12, 5\)"),
        ([Site("stem")], lambda z, y: z.sum(), r"got \(\)"),
        ([Site("stem")], lambda z, y: torch.zeros(len(z)), "does not depend on stem"),
        ([Site("unused")], soft_log_likelihood, "nothing was read at unused"),
    ],
)
def test_what_has_no_gradient_is_refused(network, sites, loss, message):
    model, x = network
    model.unused = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=message):
        capture_gradients(model, [x], sites, loss)


def test_unknown_module_no_batches_and_mixing_layers_are_refused(network):
    model, x = network
    with pytest.raises(KeyError, match="did you mean 'stem'"):
        capture_gradients(model, [x], [Site("stm")])
    with pytest.raises(ValueError, match="no batches"):
        capture_gradients(model, [], [Site("stem")])
    with pytest.raises(ValueError, match="walked more than once"):
        capture_gradients(model, iter([x]), [Site("stem")])
    mixing = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(ValueError, match="1: BatchNorm without running statistics mixes"):
        capture_gradients(mixing, [x], [Site("0")])
