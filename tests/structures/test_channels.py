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


class Unpooled(nn.Module):
    """The positions that one layer's maxima have are those of another layer's values: both stay equally wide."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mid, self.back = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x, places = F.max_pool2d(self.first(x), 2, return_indices=True)
        return self.head(F.max_unpool2d(self.back(self.mid(x).relu()), places, 2))


class Tied(nn.Module):
    """Two layers in a row with one weight, whose inputs are the first one's outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mid, self.next, self.head = (nn.Linear(*pair) for pair in ((3, 8), (8, 8), (8, 8), (8, 2)))
        self.next.weight = self.mid.weight

    def forward(self, x):
        return self.head(self.next(self.mid(self.first(x).relu()).relu()).relu())


@pytest.mark.parametrize(
    "model, x, refused", [(Unpooled, (2, 3, 4, 4), {"first", "back"}), (Tied, (2, 3), {"first", "mid", "next"})]
)
def test_groups_that_could_only_shrink_by_equal_numbers_do_not_prove_each_other(model, x, refused):
    groups, reasons = structure("channels").find(Network(model().eval(), ((torch.randn(x),), {})))
    assert {name for name, _ in reasons} == refused | {"head"}
    assert {group.name for group in groups} == ({"mid"} if model is Unpooled else set())
