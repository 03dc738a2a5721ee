"""Shifted inputs: what each corruption does to pixels, and that attacks stay near and do harm."""

import pytest
import torch
from torch import nn

from simprune.checks import corruptions
from simprune.checks.corruptions import shifted

LIMITS = (-1.0, 3.0)


@pytest.fixture
def images():
    return -1 + 4 * torch.rand(6, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", corruptions.names())
def test_pixels_stay_within_the_limits_and_labels_stay(images, name):
    model, labels = nn.Sequential(nn.Flatten(), nn.Linear(432, 4)), torch.tensor([0, 1, 2, 3, 0, 1])
    before = images.clone()
    found, same = shifted(name, (images, labels), model, LIMITS, seed=3)
    assert torch.equal(images, before) and torch.equal(same, labels)
    assert found.shape == images.shape and found.dtype == images.dtype
    assert found.min() >= LIMITS[0] and found.max() <= LIMITS[1]
    assert torch.equal(found, shifted(name, (images, labels), model, LIMITS, seed=3)[0])
    assert torch.equal(found, images) == (name == "clean")


@pytest.mark.parametrize("kind", ["noise", "blur", "brightness", "contrast", "jpeg"])
def test_severities_grow(images, kind):
    smooth = images.mean((2, 3), keepdim=True) + 0.2 * (images - images.mean((2, 3), keepdim=True))
    away = [(shifted(f"{kind}_{k}", smooth, nn.Identity(), LIMITS) - smooth).square().mean() for k in (1, 2, 3)]
    assert away[0] < away[1] < away[2]


def test_brightness_and_contrast_by_their_formulas():
    x = torch.tensor([[[[0.2, 0.4]]]])
    torch.testing.assert_close(shifted("brightness_2", x, nn.Identity(), (0.0, 1.0)), x + 0.2)
    torch.testing.assert_close(shifted("contrast_2", x, nn.Identity(), (0.0, 1.0)), 0.3 + 0.5 * (x - 0.3))


def test_blur_keeps_a_constant_image():
    x = torch.full((1, 2, 9, 9), 0.25)
    torch.testing.assert_close(shifted("blur_3", x, nn.Identity(), (0.0, 1.0)), x)


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_attacks_stay_near_and_raise_the_loss(images, name):
    torch.manual_seed(0)
    model, labels = nn.Sequential(nn.Flatten(), nn.Linear(432, 4)), torch.tensor([0, 1, 2, 3, 0, 1])
    with torch.inference_mode():
        attacked, _ = shifted(name, (images, labels), model, LIMITS)
        loss = [nn.functional.cross_entropy(model(x), labels) for x in (images, attacked)]
    assert (attacked - images).abs().max() <= corruptions.EPSILON * 4 + 1e-6
    assert loss[1] > loss[0]
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: shifted("nose_1", x, nn.Identity(), LIMITS), "did you mean 'noise_1'"),
        (lambda x: shifted("noise_1", x[0, 0], nn.Identity(), LIMITS), "need images"),
        (lambda x: shifted("jpeg_1", x[:, :2], nn.Identity(), LIMITS), "1 or 3 channels; got 2"),
        (lambda x: corruptions.limits_of(torch.zeros(2, 1, 3, 3)), "all pixels of the first batch are 0"),
    ],
)
def test_other_inputs_are_one_clear_error(images, call, message):
    with pytest.raises(ValueError, match=message):
        call(images)
