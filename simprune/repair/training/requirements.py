"""What a training needs, said before any work."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from simprune.core.batches import device_of
from simprune.core.processes import count
from simprune.core.store import require_folder
from simprune.core.weights import refuse_infinite
from simprune.settings import Finetune
from simprune.trace.first_run import check_module

DIVIDING = tuple(f"ACCELERATE_USE_{way}" for way in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"))


def check(how: Finetune, model: nn.Module, folder: Path | None) -> None:
    """Raise unless a training can begin as it is asked for.

    Args:
        how: the settings.
        model: that is trained, or that it is made of.
        folder: of the training.

    Raises:
        ValueError: for options without an effect, for TensorBoard without a folder, for fp16 on a CPU, for a model that
            has nothing to train, and for a program that `accelerate launch` has started to divide the model over
            processes.
        ImportError: for a package that is not installed.
        OSError: for a folder that cannot be made.

    >>> check(Finetune(precision="fp16"), nn.Linear(2, 1), None)
    Traceback (most recent call last):
    ValueError: finetune.precision: fp16 needs a GPU; got a model on the CPU; choose bf16 or fp32
    """
    for name in DIVIDING:
        if os.environ.get(name, "").lower() in ("1", "true"):
            raise ValueError(
                f"finetune: every process trains the whole model, and {name} asks for a divided one; start it by "
                "torchrun, and choose lora and precision=bf16 where memory is short"
            )
    if not how.lora and not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "finetune: expected parameters that can be trained; got a model in which all are frozen, or that has none; "
            "call model.requires_grad_(True), or leave finetune out"
        )
    if how.optimizer == "adamw" and how.momentum != Finetune.momentum:
        raise ValueError("finetune.momentum has no effect: adamw has none; leave it out, or choose sgd")
    if not how.features and how.feature_measure != Finetune.feature_measure:
        raise ValueError("finetune.feature_measure has no effect: no features are followed; add finetune.features")
    if how.tensorboard and folder is None:
        raise ValueError("finetune.tensorboard: expected a folder to write to; got none; give folder=...")
    if how.precision == "fp16" and device_of(model).type == "cpu":
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
    if folder is not None:
        require_folder(folder)


def check_call(how: Finetune, small: Any, teacher: Any, passes: Any, seed: Any) -> None:
    """Raise ValueError unless the arguments of a training fit each other.

    Args:
        how: the settings.
        small: the model.
        teacher: the original, or None.
        passes: what decides whether a model passes, or None.
        seed: of the training.

    >>> check_call(Finetune(), nn.Linear(2, 1), None, None, -1)
    Traceback (most recent call last):
    ValueError: seed: expected a whole number of at least 0; got -1
    """
    check_module(small, "small")
    refuse_infinite(small, dict(small.named_parameters()), "small")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed: expected a whole number of at least 0; got {seed!r}")
    if passes is not None and not callable(passes):
        raise ValueError(f"passes: expected a function of a model and batches; got {type(passes).__name__}")
    if how.until_passed and passes is None:
        raise ValueError("finetune.until_passed: expected what decides whether a model passes; got none; give passes=")
    if passes is not None and not how.until_passed:
        raise ValueError("passes has no effect: the training does not end by it; add until_passed=True")
    if teacher is None:
        for name in ("distill", "temperature"):
            if getattr(how, name) not in (getattr(Finetune, name), 0):
                raise ValueError(f"finetune.{name} has no effect: there is no teacher; give teacher=")
        return
    check_module(teacher, "teacher")
    theirs = {id(parameter) for parameter in teacher.parameters()}
    shared = next((name for name, parameter in small.named_parameters() if id(parameter) in theirs), None)
    if shared is not None:
        raise ValueError(
            f"small and teacher share the parameter {shared}, which the training would change in both; give a copy, as "
            "copy.deepcopy and simprune.apply make it"
        )
