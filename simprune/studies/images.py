"""The images that studies train and test on: scikit-learn's digits, or arrays of the user's."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from simprune.sources import Batches
from simprune.studies.arrays import read_arrays


@dataclass(frozen=True)
class Images:
    """Images with labels, in two parts that share no image.

    Args:
        train: (N, C, H, W) float32.
        train_labels: (N,) int64.
        test: (M, C, H, W) float32.
        test_labels: (M,) int64.
        name: for readers.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    name: str = "digits"

    @property
    def classes(self) -> int:
        return int(max(self.train_labels.max(), self.test_labels.max())) + 1

    @property
    def channels(self) -> int:
        return self.train.shape[1]

    @property
    def side(self) -> int:
        """Pixels of a side."""
        return self.train.shape[-1]

    @property
    def digest(self) -> str:
        """Hash of all pixels and labels."""
        content = hashlib.sha256()
        for tensor in (self.train, self.train_labels, self.test, self.test_labels):
            content.update(tensor.contiguous().numpy().tobytes())
        return content.hexdigest()[:16]

    def batches(
        self, count: int | None = None, split: str = "train", seed: int | None = None, size: int = 128
    ) -> Batches:
        """Batches of images and labels, as the functions of simprune take them.

        Args:
            count: images; None for all.
            split: "train" or "test".
            seed: of the draw; None for the first ones.
            size: images of a batch.
        """
        images, labels = (self.train, self.train_labels) if split == "train" else (self.test, self.test_labels)
        order = torch.arange(len(images))
        if seed is not None:
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        order = order[:count]
        return Batches(images[order], labels[order], batch_size=size)

    def only(self, classes: Iterable[int]) -> "Images":
        """The images of some classes, which are numbered anew in the order given."""
        order = list(classes)
        parts = []
        for images, labels in ((self.train, self.train_labels), (self.test, self.test_labels)):
            chosen = torch.isin(labels, torch.tensor(order))
            numbers = torch.full((max(self.classes, max(order) + 1),), -1)
            numbers[torch.tensor(order)] = torch.arange(len(order))
            parts += [images[chosen], numbers[labels[chosen]]]
        return Images(*parts, name=f"{self.name}, classes {', '.join(map(str, order))}")


def read_images(data: str | None = None, size: int | None = None) -> Images:
    """The digits, or images of the user's.

    Args:
        data: None for the digits; a .npz file, or a folder with one (or with cifar10_lossless.npz). It holds
            `train_images` (or `calibration_images`), `train_labels`, `test_images`, `test_labels`. Images are
            (N, H, W, C) of uint8, which are normalised per channel, or (N, C, H, W) of float32, used as they are.
        size: pixels of a side, to which images are brought; None for those that they have.

    Raises:
        FileNotFoundError: for a file that is not there.
        ValueError: for a file with other arrays.

    >>> read_images().train.shape
    torch.Size([1000, 1, 8, 8])
    """
    images = _digits() if data is None else Images(*read_arrays(Path(data).expanduser()))
    return images if size is None or size == images.side else _resized(images, size)


def _digits() -> Images:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    train, test = train_test_split(np.arange(len(labels)), train_size=1000, stratify=labels, random_state=0)
    shaped = torch.tensor(pixels / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    numbers = torch.tensor(labels).long()
    return Images(shaped[train], numbers[train], shaped[test], numbers[test])


def _resized(images: Images, size: int) -> Images:
    """Smaller by means over areas, larger by linear interpolation."""
    how: dict = {"mode": "area"} if size < images.side else {"mode": "bilinear", "align_corners": False}
    train, test = (F.interpolate(part, (size, size), **how) for part in (images.train, images.test))
    return Images(train, images.train_labels, test, images.test_labels, f"{images.name} at {size} pixels")
