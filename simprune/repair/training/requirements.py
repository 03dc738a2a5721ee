"""What a training needs beside the default install, said before any work."""

import os
from importlib.util import find_spec
from pathlib import Path

import torch

from simprune.core.processes import count
from simprune.settings import Finetune

DIVIDING = tuple(f"ACCELERATE_USE_{way}" for way in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"))


def check(how: Finetune, device: torch.device, folder: Path | None) -> None:
    """Raise unless a training can begin as it is asked for.

    Args:
        how: the settings.
        device: of the model.
        folder: of the training.

    Raises:
        ValueError: for TensorBoard without a folder, for fp16 on a CPU, and for a program that `accelerate launch` has
            started to divide the model over processes.
        ImportError: for a package that is not installed.

    >>> check(Finetune(precision="fp16"), torch.device("cpu"), None)
    Traceback (most recent call last):
    ValueError: finetune.precision: fp16 needs a GPU; got a model on the CPU; choose bf16 or fp32
    """
    for name in DIVIDING:
        if os.environ.get(name, "").lower() in ("1", "true"):
            raise ValueError(
                f"finetune: every process trains the whole model, and {name} asks for a divided one; start it by "
                "torchrun, and choose lora and precision=bf16 where memory is short"
            )
    if how.tensorboard and folder is None:
        raise ValueError("finetune.tensorboard: expected a folder to write to; got none; give folder=...")
    if how.precision == "fp16" and device.type == "cpu":
        raise ValueError("finetune.precision: fp16 needs a GPU; got a model on the CPU; choose bf16 or fp32")
    needs = {
        "finetune.tensorboard": ("tensorboard", how.tensorboard),
        "finetune.lora": ("peft", how.lora > 0),
        f"finetune.precision {how.precision}": ("accelerate", how.precision != "fp32"),
        "finetune in several processes": ("accelerate", count() > 1),
    }
    for what, (package, needed) in needs.items():
        if needed and find_spec(package) is None:
            raise ImportError(f"{what} needs the package {package}; pip install simprune[train]")
