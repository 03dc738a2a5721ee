"""Every family: what it takes and gives, and what it refuses. What each can be pruned to is in tests/architectures."""

import pytest
import torch

from simprune import zoo
from tests.architectures.networks import CONVOLUTIONAL, make


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_images_become_logits_that_every_parameter_feels(name):
    model = make(name).train()
    output = model(torch.randn(2, 3, 8, 8))
    assert output.shape == ((2, 2, 8, 8) if name == "unet" else (2, 10))
    output.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("fused", [True, False])
def test_vision_transformer_equals_itself_written_with_torch_layers(fused):
    torch.manual_seed(0)
    attention = zoo.ViT(size=8, width=12, depth=1, heads=3, fused=fused).blocks[0].attn
    reference = torch.nn.MultiheadAttention(12, 3, batch_first=True)
    parts = [attention.qkv] if fused else [attention.q, attention.k, attention.v]
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        reference.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        reference.out_proj.weight.copy_(attention.proj.weight)
        reference.out_proj.bias.copy_(attention.proj.bias)
        x = torch.randn(2, 5, 12)
        torch.testing.assert_close(attention(x), reference(x, x, x)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options, message", [({"size": 10}, "multiple of patch; got 10 and 4"), ({"width": 10}, "multiple of heads")]
)
def test_shapes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        zoo.ViT(**options)
