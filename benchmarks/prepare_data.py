"""Build the data folder of the benchmarks on CIFAR-10 from the public images and weights.

    python -m benchmarks.prepare_data --data FOLDER --archives DOWNLOADS [--download] [--test-images 1017] [--adapt]

DOWNLOADS holds, or with --download gets:

- cifar-10-python.tar.gz, from https://www.cs.toronto.edu/~kriz/cifar.html (Krizhevsky 2009)
- resnet20-12fca82f.th, resnet56-4bfd9763.th, from https://github.com/akamaster/pytorch_resnet_cifar10 (BSD-2)

FOLDER then holds, in the order of the archive:

- cifar10_lossless.npz, the first 1,102 images of the archive's first part and the first 1,017 of its other training
  parts for calibration, and the first test images: all 10,000, or with --test-images 1017 those of docs/results.md
- cifar10_resnet20.safetensors, cifar10_resnet56.safetensors, whose tensors are checked
- cifar10_jpeg_train.npz, cifar10_jpeg_test.npz, all images as JPEG of quality 75, class after class
- with --adapt cifar10_resnet56_jpeg.safetensors: ResNet-56 trained on for three epochs on the JPEG images, which takes
  hours on a CPU and minutes on a GPU

The JPEG images behind docs/results.md have the same quantisation and order, but another encoder rounded them (the
median squared difference of a pixel is 1.2), and their network was adapted elsewhere. Numbers on JPEG images that are
repeated here therefore differ by some tenths of a point at least; the others differ by rounding alone.
"""

import argparse
import hashlib
import pickle
import sys
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.request import urlretrieve

import numpy as np
import torch
from safetensors.torch import save_file

import simprune as sp
from benchmarks._cifar import jpeg_images, load
from simprune.sources import Batches
from simprune.trace.answers import agreement, answer

WEIGHTS = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models"
ARCHIVE = "cifar-10-python.tar.gz"
# file -> address, and how its SHA-256 begins (that of the weights is part of their name)
FILES = {
    ARCHIVE: (
        f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}",
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    ),
    "resnet20-12fca82f.th": (f"{WEIGHTS}/resnet20-12fca82f.th", "12fca82f"),
    "resnet56-4bfd9763.th": (f"{WEIGHTS}/resnet56-4bfd9763.th", "4bfd9763"),
}
# SHA-256 of all tensors by name, in alphabetical order
TENSORS = {
    "resnet20": "bb7e61c258999630df5b6fc9bf4e6cba1f6cc694ed0749a0719082a2e8022cde",
    "resnet56": "fad676852372abc35cddd449d453a2590c5377523f582da7db45243c6920b95d",
}
PART = 10000  # images in a part of the archive, of which there are five for training
CALIBRATION = (1102, 1017, 1017, 1017, 1017)  # images at the beginning of every part
QUALITY = 75
Splits = dict[str, tuple[np.ndarray, np.ndarray]]


def obtain(folder: Path, download: bool) -> dict[str, Path]:
    """The files, checked; SystemExit, in one line, for one that is missing or another one."""
    paths = {}
    for name, (address, start) in FILES.items():
        path = folder / name
        if not path.is_file() and download:
            folder.mkdir(parents=True, exist_ok=True)
            print(f"downloading {address}", file=sys.stderr)
            urlretrieve(address, path)
        if not path.is_file():
            raise SystemExit(f"no {path}; get it from {address}, or add --download")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not digest.startswith(start):
            raise SystemExit(f"{path} is another file: expected a SHA-256 of {start}..., got {digest}")
        paths[name] = path
    return paths


class Arrays(pickle.Unpickler):
    """Reads the archive's dictionaries of arrays, and nothing else that a pickle could name."""

    ALLOWED = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy")

    def find_class(self, module: str, name: str) -> object:
        if module in self.ALLOWED and name in ("_reconstruct", "ndarray", "dtype"):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise ValueError(f"{ARCHIVE} names {module}.{name}, which is no array")


def images(archive: Path) -> Splits:
    """Pixels (N, 32, 32, 3) and labels (N,) of the splits "train" and "test", in the order of the archive."""
    splits: dict[str, list[tuple[np.ndarray, list[int]]]] = {"train": [], "test": []}
    with tarfile.open(archive) as tar:
        for member in sorted(tar.getmembers(), key=lambda member: member.name):
            name = Path(member.name).name
            file = tar.extractfile(member) if name.startswith(("data_batch_", "test_batch")) else None
            if file is not None:
                content = Arrays(file, encoding="bytes").load()
                pixels = content[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
                splits["test" if name == "test_batch" else "train"].append((pixels, content[b"labels"]))
    joined = {}
    for split, parts in splits.items():
        pixels, labels = (np.concatenate(values) for values in zip(*parts, strict=True))
        joined[split] = pixels, labels.astype(np.uint8)
    return joined


def lossless(splits: Splits, test_images: int) -> dict[str, np.ndarray]:
    """The arrays of cifar10_lossless.npz."""
    (train, train_labels), (test, test_labels) = splits["train"], splits["test"]
    rows = np.concatenate([PART * part + np.arange(count) for part, count in enumerate(CALIBRATION)])
    rows = rows[rows < len(train)]
    return {
        "calibration_images": train[rows],
        "calibration_labels": train_labels[rows],
        "test_images": test[:test_images],
        "test_labels": test_labels[:test_images],
    }


def as_jpeg(pixels: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of a file of JPEG images: class after class, within a class in the order of the archive."""
    from PIL import Image

    order = np.argsort(labels, kind="stable")
    encoded = []
    for image in pixels[order]:
        file = BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=QUALITY)
        encoded.append(file.getvalue())
    return {
        "jpeg": np.frombuffer(b"".join(encoded), np.uint8),
        "offsets": np.cumsum([0, *map(len, encoded)]),
        "labels": labels[order],
    }


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays under their names."""
    named: dict[str, Any] = dict(arrays)
    np.savez_compressed(path, **named)


def weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a published file, by the names that the benchmarks read."""
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    names = {name: name.removeprefix("module.") for name in state if not name.endswith("num_batches_tracked")}
    return {short: state[name].contiguous() for name, short in names.items()}


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 of names and values, whatever file they stand in."""
    whole = hashlib.sha256()
    for name in sorted(tensors):
        whole.update(name.encode() + tensors[name].numpy().tobytes())
    return whole.hexdigest()


def adapt(folder: Path) -> None:
    """Train ResNet-56 on for three epochs on the JPEG images, and write its weights."""
    model = load(folder, "resnet56").to("cuda" if torch.cuda.is_available() else "cpu")
    train = Batches(*jpeg_images(folder, "train").tensors, batch_size=128, shuffle=0)
    sp.finetune(model, train, epochs=3, lr=0.01)
    tensors = {name: value.cpu() for name, value in model.state_dict().items() if "num_batches" not in name}
    save_file(tensors, folder / "cifar10_resnet56_jpeg.safetensors")
    test = answer(model, jpeg_images(folder, "test", batch_size=256))
    print(f"adapted to JPEG images: {agreement(test, test)['accuracy']:.2%} of the test images are right")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder to write")
    parser.add_argument("--archives", type=Path, required=True, help="where the downloads are, or go")
    parser.add_argument("--download", action="store_true", help="get what is missing")
    parser.add_argument("--test-images", type=int, default=10000, help="of cifar10_lossless.npz; all by default")
    parser.add_argument("--adapt", action="store_true", help="train ResNet-56 on, on the JPEG images")
    options = parser.parse_args()
    paths = obtain(options.archives, options.download)
    options.data.mkdir(parents=True, exist_ok=True)
    splits = images(paths[ARCHIVE])
    write(options.data / "cifar10_lossless.npz", lossless(splits, options.test_images))
    for split, (pixels, labels) in splits.items():
        write(options.data / f"cifar10_jpeg_{split}.npz", as_jpeg(pixels, labels))
    for network, expected in TENSORS.items():
        (name,) = (name for name in FILES if name.startswith(network))
        tensors = weights(paths[name])
        if digest(tensors) != expected:
            raise SystemExit(f"{name}: the tensors are not those that docs/results.md's numbers were made with")
        save_file(tensors, options.data / f"cifar10_{network}.safetensors")
    print(f"written to {options.data}")
    if options.adapt:
        adapt(options.data)


if __name__ == "__main__":
    main()
