"""Deleting removed layers from a counted list, and updating every number that counts or indexes the list.

A transformer's layers are in an `nn.ModuleList` whose length is also in a configuration (`num_hidden_layers`) or an
attribute (`num_layers`). Networks loop up to that number, caches are indexed by the `layer_idx` of attention modules,
and `from_pretrained` builds the model from the configuration. Removed blocks elsewhere stay as a `Bypass`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import compress
from typing import Any

from torch import nn

from simprune.trace.bypass import Bypass

COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers")
DECODER_COUNTS = ("decoder_layers", "num_decoder_layers")
NOTE = "_simprune_compaction"  # attribute of a model that holds the `Change`s by which its layers were deleted


@dataclass
class Change:
    """An attribute, with its values before and after layers are deleted."""

    owner: Any
    name: str
    before: Any
    after: Any

    def set(self, done: bool) -> None:
        """Make the change, or undo it."""
        setattr(self.owner, self.name, self.after if done else self.before)


def compact(model: nn.Module) -> bool:
    """Delete the stand-ins of whole layers from counted lists, in place.

    The model remembers the deletion, so that `restored` can undo it. Returns whether anything was changed.
    """
    changes: list[Change] = []
    for path, layers in model.named_modules():
        if not isinstance(layers, nn.ModuleList):
            continue
        before = list(layers)
        counters = list(_counters(model, path, len(before)))
        stays = [not _removable(module) for module in before]
        remaining = list(compress(before, stays))
        if counters and remaining and len(remaining) < len(before):
            # the list's own dictionary is exchanged, because a ModuleList cannot be assigned another content
            changes.append(Change(layers, "_modules", layers._modules, nn.ModuleList(remaining)._modules))
            changes += [Change(owner, name, len(before), len(remaining)) for owner, name in counters]
            changes += _lists_of_one_entry_per_layer(counters, stays)
        changes += _indices(before, remaining if counters and remaining else before)
    _delete(model, changes)
    return bool(changes)


def _delete(model: nn.Module, changes: list[Change]) -> None:
    """Make the changes, and note them."""
    for change in changes:
        change.set(True)
    if changes:
        model.__dict__[NOTE] = changes  # nn.Module does not see it: copied with the model, but not in its state


def _put_back(model: nn.Module) -> list[Change]:
    """Undo the changes that a model notes, and delete the note. Returns the changes."""
    changes = model.__dict__.pop(NOTE, [])
    for change in changes:
        change.set(False)
    return changes


def compact_again(model: nn.Module) -> bool:
    """Delete anew, for a model whose stand-ins have lost their weights since it was compacted; returns as `compact`."""
    _put_back(model)
    return compact(model)


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Within the block, deleted layers are back as stand-ins, so that every module has the original's name."""
    changes = _put_back(model)  # none if nothing was deleted, or if an outer `restored` has put the layers back
    try:
        yield
    finally:
        _delete(model, changes)


def _removable(module: nn.Module) -> bool:
    """Whether a module is a stand-in that returns its input: an identity without parameters."""
    return isinstance(module, Bypass) and not module.zero and next(module.parameters(), None) is None


def _counters(model: nn.Module, path: str, length: int) -> Iterator[tuple[Any, str]]:
    """(owner, attribute) of everything around a list of layers that states its length.

    Where a configuration has a count for decoders, a list in a decoder is counted by that one.
    """
    parts = path.split(".")[:-1]
    above = [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts) + 1)]
    own, seen = above[-1], set()
    if getattr(own, "num_layers", None) == length:
        yield own, "num_layers"
    for module in reversed(above):
        config = getattr(module, "config", None)
        if config is None or id(config) in seen:
            continue
        seen.add(id(config))
        decoder = "decoder" in parts and [name for name in DECODER_COUNTS if getattr(config, name, None) == length]
        shared = module is model and own is not model and getattr(config, "is_encoder_decoder", False)
        names = list(decoder or [])
        if not (decoder and shared):  # a configuration of encoder and decoder counts the encoder's layers under COUNTS
            names += [name for name in COUNTS if getattr(config, name, None) == length]
        mapped = getattr(config, "attribute_map", {})
        for name in dict.fromkeys(mapped.get(name, name) for name in names):
            yield config, name


def _lists_of_one_entry_per_layer(counters: list[tuple[Any, str]], stays: list[bool]) -> list[Change]:
    """Changes of lists in configurations that have an entry for every layer, such as `layer_types`."""
    return [
        Change(config, name, value, list(compress(value, stays)))
        for config in {id(owner): owner for owner, _ in counters if not isinstance(owner, nn.Module)}.values()
        for name, value in vars(config).items()
        if isinstance(value, list) and len(value) == len(stays)
    ]


def _indices(before: list[nn.Module], remaining: list[nn.Module]) -> list[Change]:
    """Changes of `layer_idx`, which counts the remaining layers.

    Caches have an entry for every attention module that runs. Where some layers have lost theirs, the index of an
    attention module counts only the layers that still have one.
    """
    changes: list[Change] = []
    missing = {name for layer in remaining for name, child in layer.named_children() if isinstance(child, Bypass)}
    if len(remaining) == len(before) and not missing:
        return changes
    counts = dict.fromkeys(missing, 0)
    for index, layer in enumerate(remaining):
        for name, module in layer.named_modules():
            if type(old := getattr(module, "layer_idx", None)) is not int or isinstance(module, Bypass):
                continue
            top = name.partition(".")[0]
            new = counts[top] if top in missing else index
            if new != old:
                changes.append(Change(module, "layer_idx", old, new))
        for name in missing:
            counts[name] += not isinstance(getattr(layer, name, None), Bypass)
    return changes
