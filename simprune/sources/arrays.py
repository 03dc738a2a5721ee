"""The user's own arrays, from a file of numpy."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from simprune.core.names import did_you_mean
from simprune.core.registry import register
from simprune.sources.data import Batches, Data


@register("data", "arrays")
def arrays(
    *,
    path: str,
    batch_size: int = 128,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    calibration: str = "calibration",
    train: str | None = None,
    test: str | None = "test",
    seed: int = 0,
) -> Data:
    """An .npz file with calibration_images, calibration_labels, test_images, and so on.

    Every split is read from the keys `<split>_images` and, if it is there, `<split>_labels`.

    Args:
        path: of the file.
        batch_size: images of a batch.
        mean, std: one number per channel, by which images are normalised after their conversion.
        calibration, train, test: the name of the split in the file; None leaves the split out.
        seed: of the order of training batches.

    Returns:
        Images in the file are (N, H, W) or (N, H, W, C) of uint8, which become (N, C, H, W) float32 in [0, 1]; or
        floating point, channels first, which stay as they are.

    Raises:
        FileNotFoundError: for a missing file.
        ValueError: for a missing key, another type or shape, or pickled contents.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        archive = np.load(file, allow_pickle=False)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is not an .npz file of plain arrays: {error}") from None
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError(f"{path} holds one array; expected an .npz file with <split>_images, <split>_labels")

    def read(key: str) -> np.ndarray:
        try:
            return archive[key]
        except ValueError as error:  # pickled objects
            raise ValueError(f"{path}: {key} is not a plain array: {error}") from None

    def batches(split: str | None, shuffle: int | None = None) -> Batches | None:
        if split is None:
            return None
        key = f"{split}_images"
        if key not in archive:
            raise ValueError(f"{path} has no array {key!r}; {did_you_mean(key, archive.files)}")
        tensors = [_images(read(key), f"{path}: {key}", mean, std)]
        if f"{split}_labels" in archive:
            tensors.append(torch.from_numpy(read(f"{split}_labels")).long())
        return Batches(*tensors, batch_size=batch_size, shuffle=shuffle)

    with archive:
        return Data(batches(calibration), batches(train, shuffle=seed), batches(test))  # pyright: ignore[reportArgumentType]


def _images(values: np.ndarray, what: str, mean: Sequence[float] | None, std: Sequence[float] | None) -> Tensor:
    """Images of a file as float32, channels first and normalised; `what` names them in errors."""
    if values.dtype == np.uint8 and values.ndim in (3, 4):
        values = values if values.ndim == 4 else values[..., None]
        if values.shape[-1] > 4:
            raise ValueError(f"{what}: uint8 images must be (N, H, W) or (N, H, W, C); got {values.shape}")
        images = torch.from_numpy(values).permute(0, 3, 1, 2).float().div_(255)
    elif np.issubdtype(values.dtype, np.floating):
        images = torch.from_numpy(values).float()
    else:
        got = f"{values.dtype} {values.shape}"
        raise ValueError(f"{what}: expected uint8 (N, H, W[, C]) or floating point; got {got}")
    for name, numbers, normalise in (("mean", mean, torch.sub), ("std", std, torch.div)):
        if numbers is not None and len(numbers) != images.shape[1]:
            raise ValueError(f"{what}: {name} needs {images.shape[1]} numbers, one a channel; got {len(numbers)}")
        if numbers is not None:
            images = normalise(images, torch.tensor(numbers).reshape(1, -1, *[1] * (images.ndim - 2)))
    return images.contiguous()
