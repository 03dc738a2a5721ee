import pytest
import torch
from torch import nn

from simprune.capture import Site, accumulate, capture, watching
from tests.networks import build, images


@pytest.fixture
def network():
    return build("Residual")


def test_rows_are_the_activations_in_order(network):
    model, x = network
    rows = capture(model, [x[:5], x[5:]], [Site("stem", "pool"), Site("head", side="input")])
    assert torch.allclose(rows["stem"], model.stem(x).mean((2, 3)), atol=1e-6)
    assert torch.allclose(rows["head:input"], model.blocks(model.stem(x)).mean((2, 3)), atol=1e-6)


def test_layouts_keep_every_number_or_average_it():
    maps = torch.randn(2, 3, 4, 5)
    flat, positions = Site("a", "flatten").rows(maps), Site("a", "positions").rows(maps)
    assert flat.shape == (2, 60)
    assert positions.shape == (40, 3)
    assert torch.equal(positions[7], maps[0, :, 1, 2])
    assert torch.allclose(Site("a", "pool").rows(maps), positions.view(2, 20, 3).mean(1))
    tokens = torch.randn(2, 7, 3)
    assert torch.equal(Site("a", "positions").rows(tokens), tokens.reshape(14, 3))


def test_moments_of_many_batches_equal_the_rows_at_once(network):
    model, x = network
    site = Site("stem", "positions")
    found = accumulate(model, x.split(5), [site])["stem"]
    rows = capture(model, [x], [site])["stem"].double()
    assert found.count == len(rows)
    assert torch.allclose(found.covariance, torch.cov(rows.T, correction=0), atol=1e-9)


def test_hooks_and_modes_are_as_before_also_after_an_error(network):
    model, x = network
    model.train()
    model.stem[1].eval()
    modes = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError):
        capture(model, [x, x[:, :2]], [Site("stem")])
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_capture_does_not_move_batchnorm(network):
    model, x = network
    model.train()
    before = model.stem[1].running_mean.clone()
    capture(model, [x], [Site("stem")])
    assert torch.equal(model.stem[1].running_mean, before)


def test_captured_rows_can_be_trained_on(network):
    model, x = network
    rows = capture(model, [x], [Site("stem")])["stem"]
    probe = nn.Linear(rows.shape[1], 1)
    probe(rows).sum().backward()
    assert probe.weight.grad is not None


def test_fused_attention_cannot_hide_a_site():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert capture(layer, [torch.randn(3, 4, 8)], [Site("linear1")])["linear1"].shape == (3, 16)


def test_unknown_module_names_the_nearest(network):
    with pytest.raises(KeyError, match="did you mean"), watching(network[0], [Site("stm")], print):
        pass


def test_no_batches_is_an_error(network):
    with pytest.raises(ValueError, match="no batches"):
        capture(network[0], [], [Site("stem")])


@pytest.mark.parametrize("options", [{"layout": "mean"}, {"side": "inside"}])
def test_unknown_site_options_are_refused(options):
    with pytest.raises(ValueError, match="must be"):
        Site("stem", **options)


def test_a_module_that_never_runs_is_an_error(network):
    model, _ = network
    model.spare = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="spare"):
        capture(model, [images()], [Site("spare")])
