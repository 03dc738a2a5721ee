"""A layer's weight times its patches is the layer, in every layout and direction."""

import pytest
import torch
from torch import nn

from simprune.trace.layers import can_be_fitted, matrix_of, patches, positions, taps, weight_of

CONVOLUTIONS = [(nn.Conv1d, nn.ConvTranspose1d), (nn.Conv2d, nn.ConvTranspose2d), (nn.Conv3d, nn.ConvTranspose3d)]
OPTIONS = [
    {},
    {"stride": 2, "padding": 1},
    {"dilation": 2},
    {"stride": 3, "padding": 2, "dilation": 2, "bias": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_weight_times_patches_is_the_convolution(dims, transposed, options):
    torch.manual_seed(0)
    layer = CONVOLUTIONS[dims - 1][transposed](3, 5, (3, 2, 1)[:dims], **options).double()
    x = torch.randn(2, 3, *(7, 6, 5)[:dims], dtype=torch.float64)
    assert can_be_fitted(layer)
    product = matrix_of(layer) @ patches(layer, x)
    if layer.bias is not None:
        product = product + layer.bias[:, None]
    assert torch.allclose(product, positions(layer, layer(x)))
    assert torch.equal(weight_of(layer, matrix_of(layer)), layer.weight)
    assert matrix_of(layer).shape[1] == 3 * taps(layer)


@pytest.mark.parametrize("kernel", [1, 4])
def test_a_transposed_convolution_may_end_further_out_or_cut_into_its_input(kernel):
    layer = nn.ConvTranspose2d(3, 5, kernel, stride=3, padding=kernel // 2, output_padding=(1, 2))
    x = torch.randn(2, 3, 4, 5)
    assert layer.bias is not None
    product = matrix_of(layer) @ patches(layer, x) + layer.bias[:, None]
    assert torch.allclose(product, positions(layer, layer(x)), atol=1e-5)


@pytest.mark.parametrize("size", [(11, 14), (12, 15), (13, 16)])
def test_the_caller_of_a_transposed_convolution_may_choose_its_size(size):
    layer = nn.ConvTranspose2d(3, 5, 4, stride=3, padding=1, output_padding=1)
    x = torch.randn(2, 3, 4, 5)
    output = layer(x, output_size=size)
    assert layer.bias is not None
    product = matrix_of(layer) @ patches(layer, x, output) + layer.bias[:, None]
    assert torch.allclose(product, positions(layer, output), atol=1e-5)


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_padding_is_what_the_convolution_pads_with(dims, mode):
    layer = CONVOLUTIONS[dims - 1][0](2, 3, 3, padding=1, padding_mode=mode)
    x = torch.randn(2, 2, *(6, 5, 4)[:dims])
    assert layer.bias is not None
    product = matrix_of(layer) @ patches(layer, x) + layer.bias[:, None]
    assert torch.allclose(product, positions(layer, layer(x)), atol=1e-5)
