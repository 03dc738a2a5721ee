"""Networks of the zoo that a recipe names; their weights come from a file."""

from torch import nn

from simprune.core.registry import register
from simprune.sources.functions import model_from


@register("model", "resnet20", source="arXiv:1512.03385")
def resnet20(*, weights: str, classes: int = 10) -> nn.Module:
    """He et al.'s ResNet-20 for 32x32 images, with weights from a .safetensors file."""
    return model_from("simprune.zoo:resnet20", weights, classes=classes)


@register("model", "resnet56", source="arXiv:1512.03385")
def resnet56(*, weights: str, classes: int = 10) -> nn.Module:
    """He et al.'s ResNet-56 for 32x32 images, with weights from a .safetensors file."""
    return model_from("simprune.zoo:resnet56", weights, classes=classes)
