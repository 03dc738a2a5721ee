"""Weights of a model: loaded from safetensors without pickle, and hashed."""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model
from torch import nn

AGAIN = "copy the whole folder again or make it anew"


def load_weights(model: nn.Module, path: Path) -> None:
    """Strict in names, shapes and dtypes: nothing is left at its initial value, nothing is converted."""
    fit = "the model is not the one the bundle was made from"
    try:
        stored = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no readable safetensors file ({error}); {AGAIN}") from None
    expected = model.state_dict()
    for name in sorted(stored.keys() & expected.keys()):
        here, there = expected[name], stored[name]
        if there.shape != here.shape:
            shapes = f"{list(there.shape)}, the model needs {list(here.shape)}"
            raise ValueError(f"{path}: {name} is {shapes}; {fit}")
        if there.dtype != here.dtype:
            raise ValueError(f"{path}: {name} is {there.dtype}, the model has {here.dtype}; build it in the former")
    try:
        load_model(model, path)
    except RuntimeError:  # names; tied tensors are stored once, under one of their names
        there = {expected[name].data_ptr() for name in stored.keys() & expected.keys()}
        missing = [name for name, tensor in expected.items() if tensor.data_ptr() not in there]
        extra = [*sorted(stored.keys() - expected.keys()), "a tied tensor"]
        what = f"{missing[0]} is missing" if missing else f"{extra[0]} is not in the model"
        raise ValueError(f"{path}: {what}; {fit}") from None


def digest(model: nn.Module) -> str:
    """Hash of the values of all parameters and buffers, with their names."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(name.encode())
        if isinstance(value, torch.Tensor):
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:32]
