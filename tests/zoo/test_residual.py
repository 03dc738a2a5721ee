"""The residual networks against their published parameter counts and shortcut."""

import pytest
import torch

from simprune.zoo import ResidualCNN, resnet20, resnet56
from simprune.zoo.residual import PadShortcut


@pytest.mark.parametrize("make, millions", [(resnet20, 0.27), (resnet56, 0.85)])
def test_parameter_counts_are_those_of_the_paper(make, millions):
    assert sum(p.numel() for p in make().parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


def test_names_are_those_of_published_weights():
    names = dict(resnet20().named_parameters())
    for name in ("conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer3.2.bn2.bias", "linear.bias"):
        assert name in names
    assert not any("shortcut" in name for name in names)


def test_pad_shortcut_takes_every_second_pixel_and_pads_both_sides():
    x = torch.arange(1.0, 33.0).reshape(1, 2, 4, 4)
    y = PadShortcut(2, 4, stride=2)(x)
    assert y.shape == (1, 4, 2, 2)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert not y[:, 0].any() and not y[:, 3].any()


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_stages_halve_the_resolution_from_the_second_on(shortcut):
    model = ResidualCNN(in_channels=1, classes=3, widths=(4, 6, 9), depths=(1, 2, 1), shortcut=shortcut).eval()
    shapes = []
    for stage in model.stages:
        model.get_submodule(stage).register_forward_hook(lambda _, __, y: shapes.append(tuple(y.shape)))
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    assert shapes == [(2, 4, 8, 8), (2, 6, 4, 4), (2, 9, 2, 2)]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"shortcut": "C"}, "zero padding"),
        ({"widths": (4, 8)}, "one positive number per stage"),
        ({"depths": (1, 0, 1)}, "one positive number per stage"),
        ({"widths": (), "depths": ()}, "one positive number per stage"),
        ({"widths": (8, 4, 4), "shortcut": "A"}, "shrink"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ResidualCNN(**settings)
