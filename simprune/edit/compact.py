"""Layers in a counted list really go: the list gets shorter, and whoever keeps its length or indices is told.

A transformer's layers stand in an `nn.ModuleList` whose length is also in a configuration (`num_hidden_layers`) or an
attribute (`num_layers`); networks loop up to that number, caches index by each attention's `layer_idx`, and the
configuration is what `from_pretrained` builds from. Blocks elsewhere keep their place as a `Bypass`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from simprune.trace.bypass import Bypass

COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers")
DECODER_COUNTS = ("decoder_layers", "num_decoder_layers")
NOTE = "_simprune_compaction"


@dataclass
class Change:
    """An attribute with its value before and after the layers went."""

    owner: Any
    name: str
    before: Any
    after: Any


@dataclass
class Compaction:
    """Lists of layers with and without the stand-ins, and the attributes that follow; can be undone and done again."""

    lists: list[tuple[nn.ModuleList, list[nn.Module], list[nn.Module]]]
    changes: list[Change]
    done: bool = False

    def set(self, done: bool) -> None:
        self.done = done
        for layers, before, after in self.lists:
            layers._modules.clear()
            layers.extend(after if done else before)
        for change in self.changes:
            setattr(change.owner, change.name, change.after if done else change.before)


def compact(model: nn.Module) -> bool:
    """Delete the stand-ins of whole layers from counted lists, in place; False when there are none.

    The network is remembered as it was, for `restored`.
    """
    lists: list[tuple[nn.ModuleList, list[nn.Module], list[nn.Module]]] = []
    changes: list[Change] = []
    for path, layers in model.named_modules():
        if not isinstance(layers, nn.ModuleList):
            continue
        before = list(layers)
        counters = list(_counters(model, path, len(before)))
        stand_ins = [_removable(module) for module in before]
        kept = [module for module, gone in zip(before, stand_ins, strict=True) if not gone]
        if counters and kept and len(kept) < len(before):
            lists.append((layers, before, kept))
            changes += [Change(owner, name, len(before), len(kept)) for owner, name in counters]
            changes += _lists_of_one_entry_per_layer(counters, stand_ins)
        changes += _indices(before, kept if counters and kept else before)
    if not lists and not changes:
        return False
    done = Compaction(lists, changes)
    model.__dict__[NOTE] = done  # past nn.Module's bookkeeping: no part of the state, but copied with the model
    done.set(True)
    return True


def compact_again(model: nn.Module) -> bool:
    """As `compact`, once more stand-ins than before do nothing."""
    done = model.__dict__.pop(NOTE, None)
    if done is not None:
        done.set(False)
    return compact(model)


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """For a while the layers that went are back as stand-ins, so every module has the original's name."""
    done = model.__dict__.get(NOTE)
    if done is None or not done.done:  # nothing went, or somebody further out has the layers back already
        yield
        return
    done.set(False)
    try:
        yield
    finally:
        done.set(True)


def _removable(module: nn.Module) -> bool:
    """A stand-in that does nothing: an identity without weights of its own."""
    return isinstance(module, Bypass) and not module.zero and next(module.parameters(), None) is None


def _counters(model: nn.Module, path: str, length: int) -> Iterator[tuple[Any, str]]:
    """Every (owner, attribute) above a list that holds its length; a decoder's own count goes before the general."""
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
        if not (decoder and shared):  # a configuration of both halves counts the encoder under the general names
            names += [name for name in COUNTS if getattr(config, name, None) == length]
        mapped = getattr(config, "attribute_map", {})
        for name in dict.fromkeys(mapped.get(name, name) for name in names):
            yield config, name


def _lists_of_one_entry_per_layer(counters: list[tuple[Any, str]], gone: list[bool]) -> list[Change]:
    """Such as `layer_types`."""
    changes = []
    for config in {id(owner): owner for owner, _ in counters if not isinstance(owner, nn.Module)}.values():
        for name, value in vars(config).items():
            if isinstance(value, list) and len(value) == len(gone):
                changes.append(Change(config, name, value, [v for v, out in zip(value, gone, strict=True) if not out]))
    return changes


def _indices(before: list[nn.Module], kept: list[nn.Module]) -> list[Change]:
    """`layer_idx` counts the layers that are there; that of an attention, those that still have one."""
    changes: list[Change] = []
    missing = {name for layer in kept for name, child in layer.named_children() if isinstance(child, Bypass)}
    if len(kept) == len(before) and not missing:
        return changes
    counts = dict.fromkeys(missing, 0)
    for place, layer in enumerate(kept):
        for name, module in layer.named_modules():
            if type(index := getattr(module, "layer_idx", None)) is not int or isinstance(module, Bypass):
                continue
            top = name.partition(".")[0]
            new = counts[top] if top in missing else place
            if new != index:
                changes.append(Change(module, "layer_idx", index, new))
        for name in missing:
            counts[name] += not isinstance(getattr(layer, name, None), Bypass)
    return changes
