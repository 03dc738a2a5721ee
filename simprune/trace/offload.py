"""Models whose weights are not in their modules: accelerate holds them on the CPU or on disk and brings them in to run.

Here such a model is read through a copy without accelerate's hooks, whose parameters are the stored weights themselves:
those on the CPU are not copied, and those on disk are mapped, so that the system reads them when they are needed.
"""

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


def at_hand(model: nn.Module) -> nn.Module:
    """The model itself, or for one whose weights accelerate has offloaded, a plain copy on the CPU that shares them.

    Args:
        model: any module; it stays as it is.

    Returns:
        A model without hooks. Tensors on the meta device that no hook brings in stay there.

    >>> layer = nn.Linear(2, 2)
    >>> at_hand(layer) is layer
    True
    """
    places = offloaded(model)
    if not places:
        return model
    stored: dict[int, Tensor] = {}
    tied: dict[tuple[int, torch.Size], nn.Parameter] = {}
    for tensor, weights, name in places.values():
        value = _value(weights, name)
        if isinstance(tensor, nn.Parameter):
            parameter = nn.Parameter(value, requires_grad=tensor.requires_grad)
            value = tied.setdefault((value.data_ptr(), value.shape), parameter)
        stored[id(tensor)] = value
    hooks = {id(hook): None for module in model.modules() if (hook := vars(module).get("_hf_hook")) is not None}
    present = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters() if id(p) not in stored}
    plain = copy.deepcopy(model, {**hooks, **present, **stored})
    for module in plain.modules():
        _unhook(module)
    if callable(tie := getattr(plain, "tie_weights", None)):  # on disk, tied weights are stored one by one
        tie()
    return plain


def offloaded(model: nn.Module) -> dict[int, tuple[Tensor, Mapping[str, Tensor], str]]:
    """The empty tensors of a model that accelerate's hooks bring in, by identity, with where and how they are stored.

    >>> offloaded(nn.Linear(2, 2))
    {}
    """
    places: dict[int, tuple[Tensor, Mapping[str, Tensor], str]] = {}
    for module in model.modules():
        hook = vars(module).get("_hf_hook")
        for part in () if hook is None else getattr(hook, "hooks", [hook]):
            weights = getattr(part, "weights_map", None)
            if not getattr(part, "offload", False) or weights is None:
                continue
            recurse = bool(getattr(part, "place_submodules", False))
            for name, tensor in [*module.named_parameters(recurse=recurse), *module.named_buffers(recurse=recurse)]:
                if tensor.is_meta and _key(weights, name) in {*_loader(weights)}:  # `in` alone would read the weight
                    places[id(tensor)] = tensor, weights, name
    return places


def _loader(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The weights of the whole model, where these are those of one module."""
    return getattr(weights, "dataset", weights)


def _key(weights: Mapping[str, Tensor], name: str) -> str:
    """The name of a module's weight in `_loader`."""
    return f"{getattr(weights, 'prefix', '')}{name}"


def _value(weights: Mapping[str, Tensor], name: str) -> Tensor:
    """A stored weight: the tensor on the CPU itself, or a file of accelerate's mapped into memory."""
    loader, key = _loader(weights), _key(weights, name)
    described = getattr(loader, "index", {}).get(key)
    if key in getattr(loader, "state_dict", {}) or described is None or described.get("safetensors_file"):
        return weights[name]
    dtype, shape = getattr(torch, described["dtype"]), tuple(described["shape"])
    path = Path(getattr(loader, "save_folder", "")) / f"{key}.dat"
    # "c": what is written stays in memory and never reaches the file
    raw = np.memmap(path, dtype=np.uint8, mode="c")
    return torch.from_numpy(raw).view(dtype).reshape(shape)


def _unhook(module: nn.Module) -> None:
    """Give a module its own forward pass back, and the methods that accelerate has covered with warnings."""
    attributes = vars(module)
    if "_old_forward" in attributes:
        own = attributes.pop("_old_forward")
        attributes.pop("forward", None)
        if getattr(own, "__func__", None) is not type(module).forward:
            module.forward = own
    attributes.pop("_hf_hook", None)
    for name in [name for name in attributes if name != "forward" and callable(getattr(nn.Module, name, None))]:
        del attributes[name]
