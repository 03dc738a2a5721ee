import pytest
import torch
from torch import nn

from simprune import measures
from simprune.trace.capture import capture, stream, watching
from simprune.trace.sites import Site
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


class Tokens(nn.Module):
    """Token by token, so what stands behind padding must not matter to any row."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x, attention_mask=None):
        return self.second(self.first(x).relu())


def test_padding_has_no_part_in_rows_and_moments():
    torch.manual_seed(0)
    model, short, long = Tokens(), torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    garbage = torch.cat([short, torch.full((2, 2, 4), 1e3)], 1)
    mask = torch.tensor([[1, 1, 1, 0, 0]] * 2 + [[1] * 5] * 2)
    padded = {"x": torch.cat([garbage, long]), "attention_mask": mask}
    for layout in ("pool", "positions"):
        sites = [Site("first", layout), Site("second", layout, "input")]
        expected = [capture(model, [x], sites) for x in (short, long)]
        found = capture(model, [padded], sites)
        for name, rows in found.items():
            torch.testing.assert_close(rows, torch.cat([each[name] for each in expected]))
    pooled = [Site("first"), Site("second")]
    seen = stream(model, [padded], pooled, measures.streaming("cka", ["first", "second"]))
    rows = {name: torch.cat([capture(model, [x], pooled)[name] for x in (short, long)]) for name in ("first", "second")}
    assert seen.value("first", "second") == pytest.approx(measures.get("cka")(rows["first"], rows["second"]), abs=1e-6)


def test_a_sentence_of_padding_alone_is_a_zero_row():
    site = Site("a", mask=torch.tensor([[True, False], [False, False]]))
    assert torch.equal(site.rows(torch.ones(2, 2, 3)), torch.tensor([[1.0] * 3, [0.0] * 3]))


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
