"""Images of the user's, read from a .npz file and checked."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

CIFAR = "cifar10_lossless.npz"  # the file of a folder that holds several
TRAIN = ("train", "calibration")  # prefixes of the arrays with images to train on


def _file(path: Path) -> Path:
    """The .npz file that a path names, or that lies in a folder."""
    if path.is_dir():
        files = [path / CIFAR] if (path / CIFAR).is_file() else sorted(path.glob("*.npz"))
        if len(files) != 1:
            raise ValueError(f"data: expected a folder with one .npz file; {path} has {len(files)}; name the file")
        return files[0]
    if not path.is_file():
        raise FileNotFoundError(f"data: no file or folder {path}")
    return path


def read_arrays(path: Path) -> tuple[Tensor, Tensor, Tensor, Tensor, str]:
    """Images to train on with labels, images to test on with labels, and a name, from a .npz file or its folder.

    Raises:
        FileNotFoundError: for a file that is not there.
        ValueError: for a file with other arrays.
    """
    path = _file(path)
    try:
        arrays = np.load(path, allow_pickle=False)
        names = set(arrays.files)
    except (ValueError, OSError, AttributeError) as error:
        raise ValueError(f"data: {path} is no readable .npz file ({error})") from None
    prefix = next((prefix for prefix in TRAIN if f"{prefix}_images" in names), "train")
    wanted = [f"{prefix}_images", f"{prefix}_labels", "test_images", "test_labels"]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise ValueError(f"data: {path} lacks {', '.join(missing)}; it holds {', '.join(sorted(names))}")
    try:
        train, train_labels, test, test_labels = (arrays[name] for name in wanted)
    except ValueError as error:  # arrays of Python objects, which only pickle reads
        raise ValueError(f"data: {path} holds arrays that are no numbers ({error})") from None
    for name, images, labels in ((wanted[0], train, train_labels), ("test_images", test, test_labels)):
        _check_array(name, images, labels)
    pixels = [torch.tensor(images) for images in (train, test)]
    if train.dtype != test.dtype:
        raise ValueError(f"data: expected images of one type; got {train.dtype} to train and {test.dtype} to test on")
    if train.dtype == np.uint8:
        pixels = [images.permute(0, 3, 1, 2).float() / 255 for images in pixels]
        mean, deviation = pixels[0].mean((0, 2, 3), keepdim=True), pixels[0].std((0, 2, 3), keepdim=True)
        pixels = [((images - mean) / deviation.clamp_min(1e-6)).contiguous() for images in pixels]
    _check_sides(pixels[0], pixels[1], len(np.unique(train_labels)))
    numbers = [torch.tensor(labels).long() for labels in (train_labels, test_labels)]
    return pixels[0], numbers[0], pixels[1], numbers[1], path.stem


def _check_array(name: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Check the images and labels of a file.

    Args:
        name: of the array of images.
        images: (N, C, H, W) of float32, or (N, H, W, C) of uint8.
        labels: (N,) numbers of classes from 0.

    Raises:
        ValueError: for other shapes and types, no images, values that are not finite, and labels that are no numbers
            of classes.
    """
    got = f"got {images.dtype} {list(images.shape)} and labels {labels.dtype} {list(labels.shape)}"
    if images.ndim != 4 or images.dtype not in (np.uint8, np.float32):
        raise ValueError(f"data: expected {name} as (N, H, W, C) of uint8 or (N, C, H, W) of float32; {got}")
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu" or not len(labels) or labels.min() < 0:
        raise ValueError(f"data: expected {name}, at least one, with as many numbers of classes, from 0; {got}")
    if images.dtype == np.float32 and not np.isfinite(images).all():
        raise ValueError(f"data: {name} holds values that are not finite")


def _check_sides(train: Tensor, test: Tensor, classes: int) -> None:
    """Check that images (N, C, H, W) to train and to test on are squares of one size, and that there are classes.

    Raises:
        ValueError: for others.
    """
    shapes = list(train.shape[1:]), list(test.shape[1:])
    if shapes[0] != shapes[1] or shapes[0][1] != shapes[0][2]:
        raise ValueError(
            f"data: expected squares of one size and as many channels to train and to test on; got {shapes}"
        )
    if classes < 2:
        raise ValueError("data: expected labels of at least two classes to train on; got one")
