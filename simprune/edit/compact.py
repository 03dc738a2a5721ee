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

from simprune.edit.layer_fields import COUNTS, counters, rewritten
from simprune.trace.bypass import Bypass

INDICES = ("layer_idx", "layer_id")  # attributes by which modules of a layer know its number, as caches count
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
        stays = [not _removable(module) for module in before]
        remaining = list(compress(before, stays))
        shorter = 0 < len(remaining) < len(before)
        if counted := list(_counters(model, path, len(before))) if shorter else []:
            # the list's own dictionary is exchanged, because a ModuleList cannot be assigned another content
            changes.append(Change(layers, "_modules", layers._modules, nn.ModuleList(remaining)._modules))
            changes += [Change(owner, name, len(before), len(remaining)) for owner, name in counted]
            changes += _of_single_layers(model, path, counted, stays)
        changes += _indices(before, remaining if counted else before)
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
    """(owner, attribute) of everything around a list of layers that states its length."""
    around = model.get_submodule(path.rpartition(".")[0])
    yield from ((around, name) for name in COUNTS if vars(around).get(name) == length)
    yield from counters(model, path, length)


def _of_single_layers(
    model: nn.Module, path: str, counted: list[tuple[Any, str]], stays: list[bool]
) -> Iterator[Change]:
    """Changes of what says something of single layers, in configurations and in modules that hold the same list."""
    for config in {id(owner): owner for owner, _ in counted if not isinstance(owner, nn.Module)}.values():
        for name, after in rewritten(config, stays, path):
            before = vars(config)[name]
            yield Change(config, name, before, after)
            for module in model.modules() if isinstance(before, list) else ():
                yield from (Change(module, key, before, after) for key, own in vars(module).items() if own is before)


def _indices(before: list[nn.Module], remaining: list[nn.Module]) -> list[Change]:
    """Changes of `layer_idx` and its like, which count the remaining layers.

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
            top = name.partition(".")[0]
            new = counts[top] if top in missing else index
            for attribute in INDICES if not isinstance(module, Bypass) else ():
                if type(old := vars(module).get(attribute)) is int and new != old:
                    changes.append(Change(module, attribute, old, new))
        for name in missing:
            counts[name] += not isinstance(getattr(layer, name, None), Bypass)
    return changes
