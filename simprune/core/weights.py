"""Weights of a model: loaded from safetensors without pickle, and hashed."""

import hashlib
from pathlib import Path

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
        ValueError: for a file of another format, and for other names, shapes or, if strict, dtypes.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        stored = load_file(path)
    except SafetensorError as error:
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
    model.load_state_dict(stored, strict=False)


def digest(model: nn.Module) -> str:
    """Hash of the names and values of all parameters and buffers, 32 hexadecimal digits."""
    sha = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        sha.update(name.encode())
        if isinstance(value, torch.Tensor):
            sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:32]
