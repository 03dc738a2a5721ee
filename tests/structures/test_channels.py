import pytest
import torch
import torch.nn.functional as F
from torch import nn

from simprune.structures import structure
from simprune.trace.network import Network
from simprune.zoo.residual import ResidualCNN
from tests.networks import build


def names(model, x):
    groups, refused = structure("channels").find(Network(model, ((x[:2],), {})))
    return {group.name: group for group in groups}, dict(refused)


def test_a_residual_stream_is_one_group_and_inner_channels_are_their_own():
    groups, _ = names(*build("Residual"))
    assert list(groups) == ["stem.0", "blocks.0.conv1", "blocks.1.conv1"]
    assert set(groups["stem.0"].producers) >= {"stem.0", "stem.1", "blocks.0.conv2", "blocks.1.bn2"}
    assert groups["blocks.0.conv1"].consumers == ("blocks.0.conv2",)


def test_a_flattened_channel_takes_all_its_positions_along():
    groups, _ = names(*build("Flat"))
    assert groups["conv2"].cut([1, 3])["fc1.weight", 1] == 2 * 16


def test_concatenated_branches_keep_their_offsets():
    groups, _ = names(*build("Concat"))
    (part,) = [part for part in groups["right"].slices if part.tensor == "join.weight"]
    assert part.indices == ((4,), (5,), (6,), (7,), (8,), (9,))


def test_padded_shortcuts_protect_the_stream_but_not_the_inner_channels():
    model = ResidualCNN(in_channels=3, widths=(4, 8), depths=(1, 1), shortcut="A").eval()
    groups, refused = names(model, torch.randn(2, 3, 8, 8))
    assert list(groups) == ["layer1.0.conv1", "layer2.0.conv1"]
    assert "conv1" in refused


def test_frozen_layers_are_found_too():
    model, x = build("Residual")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert len(names(model, x)[0]) == 3
    assert not any(parameter.requires_grad for parameter in model.parameters())


class Shuffled(nn.Module):
    """A reshape whose index mapping the trace gets wrong: interleaved halves."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x):
        y = F.relu(self.a(x))
        y = y.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)
        return self.b(y).mean((2, 3))


def test_a_wrong_coupling_is_refused_and_not_believed():
    model = Shuffled().eval()
    groups, refused = names(model, torch.randn(2, 3, 4, 4))
    assert "a" not in groups
    assert "a" in refused


def test_a_model_that_fails_says_so_itself():
    model, x = build("Residual")
    with pytest.raises(RuntimeError, match="channels"):
        names(model, x[:, :2])
