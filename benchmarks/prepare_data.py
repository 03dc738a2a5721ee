"""Build the data folder of the benchmarks on CIFAR-10 from the public images and weights.

    python -m benchmarks.prepare_data --data FOLDER --archives DOWNLOADS [--download]

DOWNLOADS holds, or with --download gets:

- cifar-10-python.tar.gz, from https://www.cs.toronto.edu/~kriz/cifar.html (Krizhevsky 2009)
- resnet20-12fca82f.th, resnet56-4bfd9763.th, from https://github.com/akamaster/pytorch_resnet_cifar10 (BSD-2)

FOLDER then holds cifar10_lossless.npz, with 5,170 calibration images drawn from the training split and all 10,000 test
images, and cifar10_resnet20.safetensors, cifar10_resnet56.safetensors. The tables in README.md were made with 1,017 of
the test images, so a number that is repeated here differs by its interval.
"""

import argparse
import hashlib
import pickle
import sys
import tarfile
from pathlib import Path
from urllib.request import urlretrieve

import numpy as np
import torch
from safetensors.torch import save_file

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
CALIBRATION, SEED = 5170, 0


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


def images(archive: Path) -> dict[str, np.ndarray]:
    """The arrays of cifar10_lossless.npz."""
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
    drawn = np.sort(np.random.default_rng(SEED).permutation(len(joined["train"][0]))[:CALIBRATION])
    return {
        "calibration_images": joined["train"][0][drawn],
        "calibration_labels": joined["train"][1][drawn],
        "test_images": joined["test"][0],
        "test_labels": joined["test"][1],
    }


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder to write")
    parser.add_argument("--archives", type=Path, required=True, help="where the downloads are, or go")
    parser.add_argument("--download", action="store_true", help="get what is missing")
    options = parser.parse_args()
    paths = obtain(options.archives, options.download)
    options.data.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(options.data / "cifar10_lossless.npz", **images(paths[ARCHIVE]))
    for network, expected in TENSORS.items():
        (name,) = (name for name in FILES if name.startswith(network))
        tensors = weights(paths[name])
        if digest(tensors) != expected:
            raise SystemExit(f"{name}: the tensors are not those that README.md's numbers were made with")
        save_file(tensors, options.data / f"cifar10_{network}.safetensors")
    print(f"written to {options.data}")


if __name__ == "__main__":
    main()
