"""Small reference networks, one family per file; a user's own model never needs them."""

from simprune.zoo.residual import ResidualCNN, resnet20, resnet56

__all__ = ["ResidualCNN", "resnet20", "resnet56"]
