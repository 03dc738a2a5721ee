"""The argument --data of benchmarks: a folder with the files that they read, or one line on how to get it."""

import argparse
from collections.abc import Callable
from pathlib import Path

CIFAR = ("cifar10_lossless.npz", "cifar10_resnet20.safetensors", "cifar10_resnet56.safetensors")


def holding(*names: str) -> Callable[[str], Path]:
    """A type of argparse: a folder with these files."""

    def folder(text: str) -> Path:
        path = Path(text)
        missing = [name for name in names if not (path / name).is_file()]
        if missing:
            what = f"no {missing[0]} in {path}" if path.is_dir() else f"no folder {path}"
            raise argparse.ArgumentTypeError(f"{what}; make it by python -m benchmarks.prepare_data --data {path} ...")
        return path

    return folder
