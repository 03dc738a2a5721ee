"""Small reference networks, one family per file; a user's own model never needs them."""

from simprune.zoo.convnext import ConvNeXt
from simprune.zoo.densenet import DenseNet
from simprune.zoo.inception import Inception
from simprune.zoo.mobilenet import MobileNet
from simprune.zoo.plain import PlainCNN
from simprune.zoo.residual import ResidualCNN, resnet20, resnet56
from simprune.zoo.unet import UNet
from simprune.zoo.vgg import VGG
from simprune.zoo.vit import ViT

__all__ = [
    "VGG",
    "ConvNeXt",
    "DenseNet",
    "Inception",
    "MobileNet",
    "PlainCNN",
    "ResidualCNN",
    "UNet",
    "ViT",
    "resnet20",
    "resnet56",
]
