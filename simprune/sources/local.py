"""Where models and data come from: the embedded digits, the user's arrays, `package.module:function`."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from simprune.core import names
from simprune.repair.training import finetune
from simprune.zoo.residual import ResidualCNN


@dataclass(frozen=True)
class Data:
    """Iterables of batches: `calibration` to estimate redundancy, `train` to recover, `test` to check.

    Each must be walkable more than once (a list, `Batches`, a DataLoader); ValueError for an iterator or a
    bare tensor.

    >>> Data(calibration=[torch.zeros(2, 3)]).test is None
    True
    """

    calibration: Iterable
    train: Iterable | None = None
    test: Iterable | None = None

    def __post_init__(self):
        for field in fields(self):
            batches = getattr(self, field.name)
            if batches is None and field.name != "calibration":
                continue
            what = f"{field.name} must be an iterable of batches"
            if isinstance(batches, Tensor | np.ndarray):
                raise ValueError(f"{what}; got one {type(batches).__name__}, put it into a list: [batch]")
            if isinstance(batches, str) or not isinstance(batches, Iterable):
                raise ValueError(f"{what}; got {type(batches).__name__}")
            if isinstance(batches, Iterator):
                got = type(batches).__name__
                raise ValueError(f"{what} that can be walked again; got a {got}, use list(...)")


class Batches:
    """Tensors of one length cut into batches, in order or, with a `shuffle` seed, reordered on every walk.

    Yields tensors, or tuples when several were given. The n-th walk of two objects with the same seed has the
    same order. ValueError for no rows, unequal lengths or a batch size below one.

    >>> [tuple(x.shape) for x, y in Batches(torch.zeros(5, 3), torch.arange(5), batch_size=2)]
    [(2, 3), (2, 3), (1, 3)]
    """

    def __init__(self, *tensors: Tensor, batch_size: int = 128, shuffle: int | None = None):
        lengths = [len(tensor) for tensor in tensors]
        if len(set(lengths)) != 1 or 0 in lengths:
            raise ValueError(f"expected tensors of one length above zero, got {lengths}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.tensors = list(tensors)
        self.rows = lengths[0]
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.walks = 0

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        order = torch.arange(self.rows)
        if self.shuffle is not None:
            order = torch.from_numpy(np.random.default_rng([self.shuffle, self.walks]).permutation(self.rows))
            self.walks += 1
        for rows in order.split(self.batch_size):
            batch = [tensor[rows] for tensor in self.tensors]
            yield tuple(batch) if len(batch) > 1 else batch[0]


def digits(batch_size: int = 128, calibration_size: int = 256, seed: int = 0) -> Data:
    """scikit-learn's 1797 handwritten digits: (N, 1, 8, 8) float32 images in [0, 1] and their labels.

    797 images are for testing, `calibration_size` for calibration, the others for training: disjoint,
    stratified, and always the same, so that `digits_model` has never seen a test image. `seed` orders the
    training batches. ValueError for a calibration size outside 10..990.

    >>> images, labels = next(iter(digits(batch_size=4).test))
    >>> images.shape, labels.shape
    (torch.Size([4, 1, 8, 8]), torch.Size([4]))
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    if not 10 <= calibration_size <= 990:
        raise ValueError(f"calibration_size must be from 10 to 990, got {calibration_size}")
    images, labels = load_digits(return_X_y=True)
    rest, test = train_test_split(np.arange(len(labels)), test_size=797, stratify=labels, random_state=0)
    calibration, train = train_test_split(rest, train_size=calibration_size, stratify=labels[rest], random_state=0)

    def batches(rows: Any, shuffle: int | None = None) -> Batches:
        pixels = torch.tensor(images[rows] / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
        return Batches(pixels, torch.tensor(labels[rows]), batch_size=batch_size, shuffle=shuffle)

    return Data(batches(calibration), batches(train, shuffle=seed), batches(test))


def arrays(
    path: str,
    batch_size: int = 128,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    calibration: str = "calibration",
    train: str | None = None,
    test: str | None = "test",
    seed: int = 0,
) -> Data:
    """Images and labels from an `.npz` file of plain arrays.

    Each split is read from the keys `<split>_images` and, if there, `<split>_labels`; `calibration`, `train`
    and `test` say which name a split has in the file, None leaves it out. Images are (N, H, W), (N, H, W, C)
    of uint8, which become (N, C, H, W) float32 in [0, 1], or floating point, which are taken as they are,
    channels first. `mean` and `std` normalise each channel afterwards. `seed` orders the training batches.
    FileNotFoundError for a missing file, ValueError for a missing key, another type or shape, or pickled
    contents.
    """
    if not Path(path).expanduser().is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        archive = np.load(Path(path).expanduser(), allow_pickle=False)
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
            raise ValueError(f"{path} has no array {key!r}; {names.did_you_mean(key, archive.files)}")
        tensors = [_images(read(key), f"{path}: {key}", mean, std)]
        if f"{split}_labels" in archive:
            tensors.append(torch.from_numpy(read(f"{split}_labels")).long())
        return Batches(*tensors, batch_size=batch_size, shuffle=shuffle)

    with archive:
        return Data(batches(calibration), batches(train, shuffle=seed), batches(test))  # pyright: ignore[reportArgumentType]


def _images(values: np.ndarray, what: str, mean: Sequence[float] | None, std: Sequence[float] | None) -> Tensor:
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
    for number, name in ((mean, "mean"), (std, "std")):
        if number is not None and len(number) != images.shape[1]:
            raise ValueError(f"{what}: {name} needs {images.shape[1]} numbers, one a channel; got {len(number)}")
    shape = (1, -1) + (1,) * (images.ndim - 2)
    if mean is not None:
        images = images - torch.tensor(mean).reshape(shape)
    if std is not None:
        images = images / torch.tensor(std).reshape(shape)
    return images.contiguous()


def model_from(function: str, weights: str | None = None, **options: Any) -> nn.Module:
    """The model that `package.module:function(**options)` returns, with `weights` from a `.safetensors` file.

    ValueError when the function is not found, does not take the options or returns something else, and when
    the weights do not fit.

    >>> model_from("torch.nn:Linear", in_features=3, out_features=2)
    Linear(in_features=3, out_features=2, bias=True)
    """
    model = _call(function, options)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{function} must return a torch.nn.Module, got {type(model).__name__}")
    if weights is not None:
        load_weights(model, weights)
    return model.eval()


def data_from(function: str, **options: Any) -> Data:
    """The data that `package.module:function(**options)` returns: a `Data`, its fields, or calibration alone.

    ValueError when the function is not found, does not take the options or returns something else.
    """
    return as_data(_call(function, options), function)


def as_data(value: Any, what: str) -> Data:
    """A `Data`, a dict of its fields or calibration batches alone as a `Data`; `what` made it.

    >>> as_data([torch.zeros(2, 3)], "a list").train is None
    True
    """
    if isinstance(value, Data):
        return value
    if isinstance(value, Mapping):
        known = [field.name for field in fields(Data)]
        for key in value:
            if key not in known:
                raise ValueError(f"{what} returned a key {key!r}; {names.did_you_mean(str(key), known)}")
        if "calibration" not in value:
            raise ValueError(f"{what} returned no calibration batches, only {list(value)}")
        return Data(**value)
    return Data(calibration=value)


def _call(function: str, options: dict[str, Any]) -> Any:
    found = names.resolve(function)
    names.fit(found, options, function)
    return found(**options)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a `.safetensors` file into a model; only BatchNorm's `num_batches_tracked` may be missing.

    FileNotFoundError for a missing file; ValueError for another format, other names or other shapes.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a .safetensors file: {error}") from None
    own = model.state_dict()
    missing = [key for key in own if key not in tensors and not key.endswith("num_batches_tracked")]
    surplus = [key for key in tensors if key not in own]
    other = [key for key in own if key in tensors and own[key].shape != tensors[key].shape]
    problems = {"lacks": missing, "has, unlike the model,": surplus, "has another shape for": other}
    for problem, keys in problems.items():
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise ValueError(f"{path} does not fit {type(model).__name__}: it {problem} {keys[0]!r}{more}")
    model.load_state_dict(tensors, strict=False)


def digits_model(
    widths: Sequence[int] = (16, 32, 64), depths: Sequence[int] = (3, 3, 3), epochs: int = 20, seed: int = 0
) -> nn.Module:
    """A residual network trained on `digits().train`, larger than needed; kept in the user's cache folder.

    Trains in seconds the first time. The same settings give the same weights.
    """
    training = {"epochs": epochs, "lr": 0.02, "seed": seed}
    settings = {"widths": list(widths), "depths": list(depths), **training}
    name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    path = cache_folder() / f"digits-{name}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ResidualCNN(in_channels=1, widths=widths, depths=depths)
    if not path.is_file():
        screen = Console(stderr=True)
        screen.print(f"training the digits model, once; it is kept in {path.parent}", soft_wrap=True)
        finetune(model, digits(batch_size=32, seed=seed).train or (), **training)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        save_file(model.state_dict(), partial)
        partial.replace(path)  # a killed run leaves no half file under the name
    load_weights(model, path)
    return model.eval()


def cache_folder() -> Path:
    """`simprune` in the user's cache folder: `$XDG_CACHE_HOME`, or `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "simprune"
