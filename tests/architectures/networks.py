"""Small random instances of the architectures that pruning has to cope with."""

import pytest
import torch
from torch import nn

from simprune import zoo
from tests.architectures import streams


class DenseLists(nn.Module):
    """Densely connected layers that get a list of all maps so far, to which their caller adds."""

    class Layer(nn.Module):
        def __init__(self, inputs: int) -> None:
            super().__init__()
            self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 8, 1, bias=False)
            self.bn2, self.conv2 = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3, padding=1, bias=False)

        def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
            inner = self.conv1(self.bn1(torch.cat(maps, 1)).relu())
            return self.conv2(self.bn2(inner).relu())

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.layers = nn.ModuleList(self.Layer(6 + 4 * depth) for depth in range(3))
        self.head = nn.Linear(18, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = [self.stem(x)]
        for layer in self.layers:
            maps.append(layer(maps))
        return self.head(torch.cat(maps, 1).relu().mean((2, 3)))


CONVOLUTIONAL = {
    "resnet_a": lambda: zoo.ResidualCNN(widths=(6, 10), depths=(1, 2), shortcut="A"),
    "resnet_b": lambda: zoo.ResidualCNN(widths=(6, 10), depths=(1, 2), shortcut="B"),
    "vgg": lambda: zoo.VGG(widths=(6, 8), depths=(1, 2), hidden=12),
    "mobilenet": lambda: zoo.MobileNet(widths=(4, 6), depths=(1, 2), expansion=2, last=12),
    "densenet": lambda: zoo.DenseNet(depths=(2, 2), growth=4, stem=6),
    "inception": lambda: zoo.Inception(widths=(4, 6), stem=6),
    "convnext": lambda: zoo.ConvNeXt(widths=(6, 8), depths=(1, 1), expansion=2),
    "unet": lambda: zoo.UNet(widths=(8, 12), groups=2),
    "vit": lambda: zoo.ViT(size=8, width=12, depth=2, heads=4, hidden=20),
    "vit_separate": lambda: zoo.ViT(size=8, width=12, depth=2, heads=4, hidden=20, fused=False),
}


class Encoder(nn.Module):
    """nn.TransformerEncoder with a classifier on the mean token."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(12, 4, 20, batch_first=True, norm_first=norm_first)
        self.embed = nn.Linear(6, 12)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


def _bert() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=12, num_hidden_layers=2, num_attention_heads=4, intermediate_size=20
    )
    return transformers.BertForSequenceClassification(config)


def _hf_vit() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=12, num_hidden_layers=2, num_attention_heads=4, intermediate_size=20, image_size=8, patch_size=4
    )
    return transformers.ViTForImageClassification(config)


def _llama() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=48, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=4,
        intermediate_size=20, use_cache=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def _gpt2() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=40,
        n_embd=12,
        n_layer=2,
        n_head=4,
        n_positions=16,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    return transformers.GPT2LMHeadModel(config)


def _swin() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.SwinConfig(
        image_size=8, patch_size=1, embed_dim=8, depths=[2, 2], num_heads=[2, 4], window_size=2
    )
    return transformers.SwinForImageClassification(config)


def _hf_resnet() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[2, 3], layer_type="basic", downsample_in_first_stage=False
    )
    return transformers.ResNetForImageClassification(config)


def _mobilenet_v2() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.MobileNetV2Config(
        image_size=32, depth_multiplier=0.25, depth_divisible_by=4, min_depth=4, initializer_range=0.4
    )
    return transformers.MobileNetV2ForImageClassification(config)


def _mixtral() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=20, num_local_experts=3,
    )  # fmt: skip
    return transformers.MixtralForCausalLM(config)


LISTS = {"dense_lists": DenseLists}
TOKENS = {
    "encoder": lambda: Encoder(norm_first=False),
    "encoder_pre_norm": lambda: Encoder(norm_first=True),
}
HUGGING_FACE = {"bert": _bert, "hf_vit": _hf_vit, "llama": _llama, "gpt2": _gpt2}
DEPTH = {"swin": _swin, "hf_resnet": _hf_resnet, "mobilenet_v2": _mobilenet_v2}  # tested for the removal of blocks
SUPPORTED = (*CONVOLUTIONAL, *LISTS, *TOKENS, *HUGGING_FACE, *streams.NETWORKS)


def make(name: str) -> nn.Module:
    """The architecture, with the same random weights each time: a model factory."""
    torch.manual_seed(0)
    model = ({"mixtral": _mixtral} | DEPTH | CONVOLUTIONAL | LISTS | TOKENS | HUGGING_FACE | streams.NETWORKS)[name]()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():  # nothing starts at zero or one: every tensor matters to the output
        parameter.data += (
            0.2 * torch.randn(parameter.shape, generator=generator) * parameter.detach().std().nan_to_num()
        )
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def batches(name: str, rows: int = 8) -> list:
    """Calibration batches for it."""
    generator = torch.Generator().manual_seed(2)
    if name in ("bert", "llama", "gpt2", "mixtral"):
        return [
            {
                "input_ids": torch.randint(1, 40, (rows, 6), generator=generator),
                "attention_mask": torch.ones(rows, 6).long(),
            }
            for _ in range(2)
        ]
    if name in streams.NETWORKS:
        return [streams.batch(name, rows, generator) for _ in range(2)]
    if name in TOKENS:
        return [torch.randn(rows, 5, 6, generator=generator) for _ in range(2)]
    side = 32 if name in ("hf_resnet", "mobilenet_v2") else 8
    return [torch.randn(rows, 3, side, side, generator=generator) for _ in range(2)]
