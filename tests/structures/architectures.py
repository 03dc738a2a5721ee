"""One small network per way in which blocks are built: (model in evaluation mode, batch as a dict or tensor)."""

import pytest
import torch
from torch import Tensor, nn

from simprune.zoo.residual import ResidualCNN
from simprune.zoo.vit import ViT


class InvertedBlock(nn.Module):
    """MobileNetV2's: a linear bottleneck, a shortcut where shapes allow."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        wide = 3 * before
        self.conv = nn.Sequential(
            nn.Conv2d(before, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(inplace=True),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(inplace=True),
            nn.Conv2d(wide, after, 1, bias=False), nn.BatchNorm2d(after),
        )  # fmt: skip
        self.shortcut = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


def mobilenet() -> nn.Module:
    blocks = [InvertedBlock(*sizes) for sizes in ((8, 8, 1), (8, 12, 2), (12, 12, 1), (12, 12, 1), (12, 16, 2))]
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)
    )


class Bottleneck(nn.Module):
    """The block of ResNets for ImageNet: 1x1, 3x3, 1x1, and a projection where shapes change."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, after, 1, bias=False), nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or before != after:
            self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ImageNetStyle(nn.Module):
    """A ResNet with a pooled stem of large kernels and stages of bottlenecks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 7, 2, 3, bias=False), nn.BatchNorm2d(6)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(*(Bottleneck(before, 4, 1) for before in (6, 16, 16)))
        self.layer2 = nn.Sequential(Bottleneck(16, 6, 2), Bottleneck(24, 6, 1), Bottleneck(24, 6, 1))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(self.avgpool(self.layer2(self.layer1(x))).flatten(1))


class Encoder(nn.Module):
    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=norm_first)
        self.embed = nn.Linear(6, 16)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)
        for parameter in self.encoder.parameters():  # all layers are copies of one
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


def hugging_face(name: str) -> tuple[nn.Module, dict[str, Tensor] | Tensor]:
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    ids = torch.randint(5, 60, (6, 7))
    tokens = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if name == "bert":
        config = transformers.BertConfig(vocab_size=64, max_position_embeddings=16, **sizes)
        return transformers.BertForSequenceClassification(config), tokens
    if name == "vit":
        config = transformers.ViTConfig(image_size=16, patch_size=4, **sizes)
        return transformers.ViTForImageClassification(config), {"pixel_values": torch.randn(6, 3, 16, 16)}
    if name == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=64, n_embd=16, n_layer=4, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2
        )
        return transformers.GPT2LMHeadModel(config), tokens
    if name == "convnext":
        config = transformers.ConvNextConfig(image_size=16, hidden_sizes=[8, 16], depths=[2, 3], num_stages=2)
        return transformers.ConvNextForImageClassification(config), {"pixel_values": torch.randn(6, 3, 16, 16)}
    config = transformers.LlamaConfig(vocab_size=64, num_key_value_heads=2, **sizes)
    return transformers.LlamaForCausalLM(config), tokens


def build(name: str) -> tuple[nn.Module, dict[str, Tensor] | Tensor]:
    """A seeded network; its blocks all do something."""
    torch.manual_seed(0)
    if name == "resnet":
        found = ResidualCNN(widths=(8, 12), depths=(3, 3), shortcut="A"), torch.randn(6, 3, 8, 8)
    elif name == "resnet-imagenet":
        found = ImageNetStyle(), torch.randn(6, 3, 32, 32)
    elif name == "zoo-vit":
        found = ViT(size=16, width=16, depth=4, heads=2, hidden=32), torch.randn(6, 3, 16, 16)
        for parameter in found[0].blocks.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.2)
    elif name == "mobilenet":
        found = mobilenet(), torch.randn(6, 3, 8, 8)
    elif name in ("pre-norm", "post-norm"):
        found = Encoder(name == "pre-norm"), torch.randn(6, 5, 6)
    else:
        found = hugging_face(name)
        for parameter_name, parameter in found[0].named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.2)
            elif "layer_scale" in parameter_name:
                nn.init.ones_(parameter)
    return found[0].eval(), found[1]


BLOCKS = {
    "resnet": ["layer1.0", "layer1.1", "layer1.2", "layer2.1", "layer2.2"],
    "resnet-imagenet": ["layer1.1", "layer1.2", "layer2.1", "layer2.2"],
    "mobilenet": ["1", "3", "4"],
    "zoo-vit": [f"blocks.{i}" for i in range(4)],
    "pre-norm": [f"encoder.layers.{i}" for i in range(4)],
    "post-norm": [f"encoder.layers.{i}" for i in range(4)],
    "bert": [f"bert.encoder.layer.{i}" for i in range(4)],
    "vit": [f"vit.layers.{i}" for i in range(4)],
    "llama": [f"model.layers.{i}" for i in range(4)],
    "gpt2": [f"transformer.h.{i}" for i in range(4)],
    "convnext": [f"convnext.encoder.stages.{i}.layers.{j}" for i, j in ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2))],
}
