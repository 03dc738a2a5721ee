"""Channels and inputs are followed through every operator that moves them."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simprune.trace.axes import axes_of, channels_last, like

MOVES = {  # what happens to maps (2, 6, 4, 8) of a convolution -> the dimensions of channels and inputs
    "permute": (lambda x: x.permute(0, 2, 3, 1), 3, 0),
    "transpose": (lambda x: x.transpose(1, 3), 3, 0),
    "movedim": (lambda x: x.movedim(0, 2), 0, 2),
    "tokens": (lambda x: x.flatten(2).transpose(1, 2), 2, 0),
    "positions first": (lambda x: x.flatten(2).permute(2, 0, 1), 2, 1),
    "windows": (lambda x: x.permute(0, 2, 3, 1).view(2, 2, 2, 4, 2, 6).transpose(2, 3), 5, 0),
    "slices": (lambda x: torch.cat([x[:, :, ::2], x[:, :, 1::2]], 1), 1, 0),
    "shift": (lambda x: x.permute(0, 2, 3, 1).roll(1, 2), 3, 0),
    "one row": (lambda x: x[:, :, 0], 1, 0),
    "one column, positions first": (lambda x: x.permute(2, 3, 0, 1)[:, 0], 2, 1),
    "mean over rows": (lambda x: x.mean(2), 1, 0),
    "mean kept": (lambda x: x.mean((2, 3), keepdim=True), 1, 0),
    "largest": (lambda x: x.amax(3), 1, 0),
    "stack": (lambda x: torch.stack([x, x], 1), 2, 0),
    "complex": (lambda x: torch.view_as_real(torch.view_as_complex(torch.stack([x, x], -1))), 1, 0),
    "overlapping": (lambda x: x.unfold(3, 4, 2), 1, 0),
    "unsqueeze": (lambda x: x[:, None], 2, 0),
    "pool": (lambda x: F.max_pool2d(x, 2), 1, 0),
    "resize": (lambda x: F.interpolate(x, scale_factor=2), 1, 0),
    "pad": (lambda x: F.pad(x, (1, 1)), 1, 0),
    "scale": (lambda x: torch.ones(6, 1, 1) * x, 1, 0),
    "in place": (lambda x: x.permute(0, 2, 3, 1).contiguous().mul_(2), 3, 0),
    "windows of maps": (lambda x: F.unfold(x, 2, stride=2), 1, 0),
    "windows and back": (lambda x: F.fold(F.unfold(x, 2, stride=2), (4, 8), 2, stride=2), 1, 0),
    "length of rows": (lambda x: x.norm(dim=3), 1, 0),
    "length of columns": (lambda x: x.permute(2, 0, 1, 3).norm(dim=0), 1, 0),
    "picked": (lambda x: x[:, :, torch.tensor([0, 2])], 1, 0),
    "picked in a grid": (lambda x: x.transpose(1, 3)[:, torch.zeros(3, 2, dtype=torch.long)], 4, 0),
    "picked in front": (lambda x: x.permute(2, 0, 1, 3)[torch.zeros(3, 2, dtype=torch.long)], 3, 2),
    "masked": (lambda x: x.flatten(2)[:, :, torch.arange(32) % 2 == 0], 1, 0),
    "einsum": (lambda x: torch.einsum("nchw,cd->nhwd", x, torch.ones(6, 5)), 3, 0),
}


class Moving(nn.Module):
    """A convolution, one of the moves, and a module without a type that would tell where channels lie."""

    def __init__(self, move) -> None:
        super().__init__()
        self.conv, self.end, self.move = nn.Conv2d(3, 6, 1), nn.Identity(), move

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.move(self.conv(x)))


@pytest.mark.parametrize("name", MOVES)
def test_channels_and_inputs_are_followed(name):
    move, channels, batch = MOVES[name]
    axes = axes_of(Moving(move), ((torch.randn(2, 3, 4, 8),), {}))
    assert axes.of("end", "output") == channels
    if name != "einsum":  # a product of flattened positions, after which no input is told from another
        assert axes.batch("end", "output") == batch


def test_a_layer_tells_the_channels_of_what_it_reads():
    sequence = nn.Sequential(nn.Sequential(nn.ReLU(), nn.Conv1d(3, 4, 3)), nn.ReLU())
    axes = axes_of(sequence, ((torch.randn(2, 3, 8),), {}))
    assert (axes.of("0", "input"), axes.of("0.0", "input"), axes.of("1", "output")) == (1, 1, 1)
    tokens = nn.Sequential(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 4)), nn.ReLU())
    axes = axes_of(tokens, ((torch.randn(2, 3, 5, 8),), {}))
    assert (axes.of("0", "input"), axes.of("1", "output"), axes.of("", "output")) == (3, 3, 3)


def test_a_linear_layer_over_positions_leaves_channels_where_they_are():
    mixing = nn.Sequential(nn.Conv1d(3, 4, 1), nn.Linear(8, 5), nn.ReLU())
    assert axes_of(mixing, ((torch.randn(2, 3, 8),), {})).of("2", "output") == 1


@pytest.mark.parametrize("shape, axis", [((2, 6), None), ((2, 6, 7), 1), ((2, 7, 6), -1), ((2, 3, 4, 6), 3)])
def test_rows_go_back_to_their_layout(shape, axis):
    value = torch.randn(shape)
    rows = channels_last(value, axis)
    assert rows.shape[-1] == 6
    assert torch.equal(like(rows, value, axis), value)
