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

from simprune.edit.layer_fields import COUNTS, counters, lowered, rewritten
from simprune.trace.bypass import INDICES, Bypass

NOTE = "_simprune_compaction"  # attribute of a model that holds the `Change`s by which its layers were deleted
STAYING = "_simprune_layers_stay"  # attribute of a model whose stand-ins cannot be deleted from their lists


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
    if STAYING in model.__dict__:
        return False
    changes: list[Change] = []
    for path, layers in model.named_modules():
        if not isinstance(layers, nn.ModuleList | nn.Sequential):
            continue
        before = list(layers)
        stays = [not _removable(module) for module in before]
        remaining = list(compress(before, stays))
        shorter = 0 < len(remaining) < len(before)
        if counted := list(_counters(model, path, len(before))) if shorter else []:
            # the list's own dictionary is exchanged, because a ModuleList cannot be assigned another content
            changes.append(Change(layers, "_modules", layers._modules, nn.ModuleList(remaining)._modules))
            for owner, name, position in counted:
                earlier = [change.after for change in changes if change.owner is owner and change.name == name]
                value = getattr(owner, name)  # a list of counts changes once for each of its stages
                changes.append(Change(owner, name, value, lowered([value, *earlier][-1], position, len(remaining))))
            changes += _of_single_layers(model, path, counted, stays)
            changes += _indices(remaining)
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


def keep_stand_ins(model: nn.Module) -> None:
    """Undo `compact` for good: the network does not compute the same without the stand-ins.

    Hybrids are of this kind whose kinds of layers follow from their numbers, as every fourth one being attention.
    """
    _put_back(model)
    model.__dict__[STAYING] = True


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


def _counters(model: nn.Module, path: str, length: int) -> Iterator[tuple[Any, str, int | None]]:
    """(owner, attribute, position in a list) of everything around a list of layers that states its length."""
    around = model.get_submodule(path.rpartition(".")[0])
    if isinstance(model.get_submodule(path), nn.ModuleList):  # a Sequential runs all that it holds, whatever is stated
        yield from ((around, name, None) for name in COUNTS if vars(around).get(name) == length)
    yield from counters(model, path, length)


def _of_single_layers(
    model: nn.Module, path: str, counted: list[tuple[Any, str, int | None]], stays: list[bool]
) -> Iterator[Change]:
    """Changes of what says something of single layers, in configurations and in modules that hold the same list."""
    owners = {id(owner): owner for owner, _, position in counted if position is None}
    for config in (owner for owner in owners.values() if not isinstance(owner, nn.Module)):
        for name, after in rewritten(config, stays, path):
            before = vars(config)[name]
            yield Change(config, name, before, after)
            for module in model.modules() if isinstance(before, list) else ():
                yield from (Change(module, key, before, after) for key, own in vars(module).items() if own is before)


def _indices(remaining: list[nn.Module]) -> Iterator[Change]:
    """Changes of `layer_idx` and its like, which count the remaining layers, also in stand-ins of removed halves."""
    for index, layer in enumerate(remaining):
        for module in layer.modules():
            for attribute in INDICES:
                if type(old := vars(module).get(attribute)) is int and old != index:
                    yield Change(module, attribute, old, index)
