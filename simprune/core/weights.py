"""Weights of a model: loaded from safetensors without pickle, and hashed."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

AGAIN = "copy the whole folder again or make it anew"
FIT = "the model is not the one the bundle was made from"


def load_weights(model: nn.Module, path: str | Path, strict: bool = True) -> None:
    """Load a .safetensors file into a model; every parameter and buffer gets its value from the file.

    Args:
        model: whose parameters and buffers are overwritten; unchanged when an error is raised.
        path: of the file. A tensor that is tied in the model needs to be there under one of its names.
        strict: as for a bundle, dtypes have to be the model's. Otherwise, as for a file of the user's, values are
            converted, and `num_batches_tracked` of BatchNorm may be missing.

    Raises:
        FileNotFoundError: for a missing file.
        ValueError: for a file of another format, for other names, shapes or, if strict, dtypes, and for values that are
            no numbers.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        stored = load_file(path)
    except (SafetensorError, ValueError, KeyError, MemoryError) as error:  # also for types that torch does not have
        if strict:
            raise ValueError(f"{path} is no readable safetensors file ({error}); {AGAIN}") from None
        raise ValueError(f"{path} is not a .safetensors file: {error}") from None
    own = model.state_dict()
    both = [name for name in own if name in stored]
    addresses = {own[name].data_ptr() for name in both} - {0}  # empty tensors have no memory, and address 0
    tied = {name for name, value in own.items() if isinstance(value, torch.Tensor) and value.data_ptr() in addresses}
    missing = [name for name in own if name not in stored and name not in tied]
    surplus = [name for name in stored if name not in own]
    reshaped = [name for name in both if stored[name].shape != own[name].shape]
    if strict:
        for name in sorted(both):
            wanted, value = own[name], stored[name]
            if value.shape != wanted.shape:
                raise ValueError(f"{path}: {name} is {list(value.shape)}, the model needs {list(wanted.shape)}; {FIT}")
            if value.dtype != wanted.dtype:
                end = f"the model has {wanted.dtype}; build it in the former"
                raise ValueError(f"{path}: {name} is {value.dtype}, {end}")
        if missing or surplus:
            what = f"{missing[0]} is missing" if missing else f"{min(surplus)} is not in the model"
            raise ValueError(f"{path}: {what}; {FIT}")
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    problems = {"lacks": missing, "has, unlike the model,": surplus, "has another shape for": reshaped}
    for problem, names in problems.items():
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(f"{path} does not fit {type(model).__name__}: it {problem} {names[0]!r}{more}")
    refuse_infinite(model, stored, str(path))
    model.load_state_dict(stored, strict=False)


def refuse_infinite(model: nn.Module, tensors: Mapping[str, Any], where: str) -> None:
    """Stop where a tensor of a model holds what is no number, or a parameter something infinite.

    Args:
        model: whose tensors they are.
        tensors: by name; what is no tensor of floating point is passed over.
        where: what errors begin with.

    Raises:
        ValueError: with the name of the first such tensor.
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, value in tensors.items():
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            continue
        if value.itemsize > 1 and value.sum().isfinite():  # in a tenth of the time, and in no memory
            continue
        if value.isnan().any() or (name in parameters and not value.isfinite().all()):
            kind = "nan" if value.isnan().any() else "infinite entries"
            raise ValueError(f"{where}: {name} has {kind}; no model is kept with such weights: look at what made it")


def digest(model: nn.Module) -> str:
    """Hash of the names, types, shapes and values of all parameters and buffers, 32 hexadecimal digits."""
    return digest_of(model.state_dict())


def digest_of(tensors: Mapping[str, Any]) -> str:
    """Hash of the names, types, shapes and values of tensors, 32 digits; of what is no tensor the name alone."""
    sha = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        sha.update(name.encode())
        if isinstance(value, torch.Tensor):
            sha.update(f"{value.dtype} {list(value.shape)}".encode())
            sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()[:32]
