"""Patches at some positions, and changes by other weights: what whole patches and whole layers say."""

import pytest
import torch
from torch import nn

from simprune.core.moments import gram
from simprune.core.spaced import spaced
from simprune.trace.layers import changes_by_weights, matrix_of, patches, some_patches

LAYERS = {
    "1-d": (nn.Conv1d(3, 4, 5, stride=2, padding=2), (2, 3, 300)),
    "2-d": (nn.Conv2d(3, 4, (3, 2), padding=(1, 0), dilation=(1, 2)), (2, 3, 14, 17)),
    "2-d, pointwise": (nn.Conv2d(3, 4, 1, bias=False), (2, 3, 13, 13)),
    "2-d, circular": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (2, 3, 13, 13)),
    "3-d": (nn.Conv3d(3, 4, 2, stride=(1, 2, 1)), (2, 3, 6, 9, 8)),
    "transposed": (nn.ConvTranspose2d(3, 4, 3, stride=2), (2, 3, 6, 6)),
    "linear": (nn.Linear(3, 4), (2, 150, 3)),
    "linear, maps": (nn.Linear(3, 4), (2, 12, 13, 3)),
    "linear, vectors": (nn.Linear(3, 4), (2, 3)),
}


@pytest.fixture(params=LAYERS.values(), ids=LAYERS.keys())
def run(request):
    layer, shape = request.param
    torch.manual_seed(0)
    x = torch.randn(shape)
    with torch.no_grad():
        return layer, x, layer(x)


def test_some_patches_are_those_of_the_positions(run):
    layer, x, output = run
    whole = torch.cat([patches(layer, x[i : i + 1], output[i : i + 1]) for i in range(2)])
    at = spaced(whole.shape[2], 50)
    if at is None or isinstance(layer, nn.ConvTranspose2d):
        at = torch.arange(whole.shape[2])
    torch.testing.assert_close(some_patches(layer, x, output, 50), whole[..., at])


def test_changes_by_weights_are_gradients_times_the_outputs_of_a_layer_with_them(run):
    layer, x, output = run
    gradient = torch.randn_like(output)
    bias = torch.zeros(4) if layer.bias is None else layer.bias.detach()
    own = matrix_of(layer), bias
    changes = changes_by_weights(layer, x, gradient, [own, (2 * own[0], 2 * own[1]), (own[0], bias - 1)])
    expected = (gradient * output).flatten(1).sum(1, dtype=torch.float64)
    less = expected - gradient.flatten(1).sum(1, dtype=torch.float64)
    for change, wanted in zip(changes, (expected, 2 * expected, less), strict=True):
        torch.testing.assert_close(change, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", [3, 255, 256, 301])
def test_a_product_by_parts_is_the_whole_product(width):
    columns = torch.randn(width, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gram(columns), columns @ columns.T)
