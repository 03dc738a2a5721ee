"""The user's own arrays, from a file of numpy."""

import math
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from simprune.core.names import did_you_mean
from simprune.core.registry import register
from simprune.sources.data import Batches, Data

# what numpy and zipfile raise on a file that is damaged; RuntimeError for an encrypted one
READING = (
    ValueError, TypeError, KeyError, OSError, EOFError, MemoryError, OverflowError, RuntimeError, SyntaxError,
    zipfile.BadZipFile, zlib.error, struct.error,
)  # fmt: skip
MOST = 1100  # bytes that one compressed byte can stand for; zip's method reaches 1032


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
    validation: str | None = None,
    seed: int = 0,
) -> Data:
    """An .npz file with calibration_images, calibration_labels, test_images, and so on.

    Every split is read from the keys `<split>_images` and, if it is there, `<split>_labels`.

    Args:
        path: of the file.
        batch_size: images of a batch.
        mean, std: one number per channel, by which images are normalised after their conversion.
        calibration, train, test, validation: the name of the split in the file; None leaves the split out.
        seed: of the order of training batches.

    Returns:
        Images in the file are (N, H, W) or (N, H, W, C) of uint8, which become (N, C, H, W) float32 in [0, 1]; or
        floating point, channels first, which stay as they are.

    Raises:
        FileNotFoundError: for a missing file.
        ValueError: for a missing key, another type or shape, labels that are no whole numbers, a damaged file, or
            pickled contents.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"no file {path}")
    archive = _opened(file)

    def read(key: str) -> np.ndarray:
        try:
            return archive[key]
        except READING as error:  # a damaged archive, or pickled objects
            raise ValueError(f"{path}: {key} is not a plain array: {_first_line(error)}") from None

    def batches(split: str | None, shuffle: int | None = None) -> Batches | None:
        if split is None:
            return None
        key = f"{split}_images"
        if key not in archive:
            raise ValueError(f"{path} has no array {key!r}; {did_you_mean(key, archive.files)}")
        stored = read(key)
        if stored.ndim < 2 or not len(stored):
            raise ValueError(f"{path}: {key}: expected one image or more, (N, ...); got the shape {stored.shape}")
        tensors = [_images(stored, f"{path}: {key}", mean, std)]
        if f"{split}_labels" in archive:
            tensors.append(_labels(read(f"{split}_labels"), tensors[0], f"{path}: {split}_labels"))
        return Batches(*tensors, batch_size=batch_size, shuffle=shuffle)

    with archive:
        splits = batches(calibration), batches(train, shuffle=seed), batches(test), batches(validation)
        return Data(*splits)  # pyright: ignore[reportArgumentType]


def _opened(file: Path) -> np.lib.npyio.NpzFile:
    """The archive of a file whose arrays are as large as they say; ValueError for any other file."""
    with file.open("rb") as content:
        if content.read(6) == b"\x93NUMPY":
            raise ValueError(f"{file} holds one array; expected an .npz file with <split>_images, <split>_labels")
    try:
        with zipfile.ZipFile(file) as members:  # numpy leaves a file open that it cannot read
            for member in members.infolist():
                _check_size(members, member)
        archive = np.load(file, allow_pickle=False)
    except READING as error:
        raise ValueError(f"{file} is not an .npz file of plain arrays: {_first_line(error)}") from None
    return archive


def _check_size(members: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Raise ValueError where the header of an array promises more than the file holds: numpy would allocate it."""
    with members.open(member) as content:
        if np.lib.format.read_magic(content) == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(content)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(content)
    promised = math.prod(shape) * dtype.itemsize
    if promised > member.file_size or member.file_size > MOST * max(member.compress_size, 1):
        raise ValueError(f"{member.filename} says that it has {promised:,} bytes, and the file holds fewer")


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _labels(values: np.ndarray, images: Tensor, what: str) -> Tensor:
    """Class numbers, one per image or one per pixel; nothing is rounded, cut or guessed."""
    if values.dtype.kind not in "iu":
        raise ValueError(
            f"{what}: expected whole numbers, the classes; got {values.dtype}; store them with .astype('int64')"
        )
    pixels = (len(images), *images.shape[2:])
    if values.shape not in ((len(images),), pixels):
        expected = f"({len(images)},)" + (f" or {pixels}" if len(pixels) > 1 else "")
        hint = "; of one-hot rows store .argmax(1)" if values.ndim == 2 else ""
        raise ValueError(f"{what}: expected the shape {expected}; got {values.shape}{hint}")
    if values.dtype.kind == "u" and values.size and values.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{what}: expected class numbers; got {values.max()}")
    return torch.from_numpy(values.astype(np.int64))


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
