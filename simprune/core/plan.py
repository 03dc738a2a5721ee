"""The plan: which blocks, channels and heads are removed, as a file that a person reads and edits."""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from torch import nn

from simprune.core.example import check_description
from simprune.core.names import did_you_mean
from simprune.core.options import shown
from simprune.core.reading import read_text, read_yaml
from simprune.core.registry import parts
from simprune.core.store import write_whole

FORMAT = 2
UNENDED = 1  # the format whose files say nothing at their end
MAPPINGS = ("inputs", "budget", "planner", "original", "expected")  # fields of a plan that are mappings
Replacement = Literal["identity", "zero", "linear", "mean"]
Method = str | Mapping[str, Any]  # of repair: a name, a mapping with `name` and options, or one with patterns of names
HEADER = """\
# A simprune plan. Delete an edit, or an index, to keep what it would remove.
# Indices count the output channels, or the heads, of the original layer from 0. `expected` is what the planner computed
# for the plan as it was made, `damage` of an edit is the change of the output that it expects from that edit; both are
# for the reader and change nothing. The fingerprint binds the plan to models with the same tensor names and shapes.
# The last line says that nothing of the file is lost; leave it there. sha256 shows whether the rest was edited since it
# was written: an edited plan is applied as well, and the report says that it was edited.
"""
VALUES = 1 << 21  # of a plan file, indices above all: reading so many takes 1 GiB


def fingerprint(model: nn.Module) -> str:
    """Hash of the names and shapes of all parameters and buffers; the values do not matter.

    >>> fingerprint(nn.Linear(2, 3)) == fingerprint(nn.Linear(2, 3)) != fingerprint(nn.Linear(2, 4))
    True
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    text = "\n".join(sorted(f"{name} {list(tensor.shape)}" for name, tensor in named))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Edit:
    """The removal of one block, or of some channels or heads and all that is coupled to them.

    Args:
        remove: "block", or the kind of the units, such as "channels" or "heads".
        name: of the module.
        indices: of the channels or heads that are removed, counted in the original from 0.
        of: how many channels or heads the original module has.
        reason: for the reader.
        replace: what replaces a block: its input ("identity"), nothing, where the block's output is added to
            a stream ("zero"), or its input plus a fitted linear map ("linear") or constant ("mean") of it (see
            `simprune.repair.stand_ins`).
        damage: what the planner expects to be lost, in the unit of the score; None if unknown.

    Raises:
        ValueError: for a value that no edit can have; the message names the edit.

    >>> Edit("channels", "conv1", indices=(0, 3), of=8).to_dict()
    {'remove': 'channels', 'name': 'conv1', 'indices': [0, 3], 'of': 8, 'reason': ''}
    """

    remove: str
    name: str
    indices: tuple[int, ...] = ()
    of: int = 0
    reason: str = ""
    replace: Replacement = "identity"
    damage: float | None = None

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise ValueError(f"edit of {self.name}: {problem}")

    def _problem(self) -> str:
        """Why no edit can have these values; empty when one can."""
        units, indices = self.remove, self.indices
        if units != "block" and units not in (known := parts("structure")):
            kinds = ["block", *(kind for kind in known if kind not in ("blocks", "sub_blocks"))]
            return f"remove must be one of {', '.join(kinds)}; got {units!r}"
        if self.replace not in get_args(Replacement) or (units != "block" and self.replace != "identity"):
            options = get_args(Replacement) if units == "block" else "left out (it is for blocks)"
            return f"replace must be {options}; got {self.replace!r}"
        if units == "block":
            return ""
        if not indices:
            return f"no {units} are listed; delete the edit to keep them all"
        if any(not isinstance(index, int) or isinstance(index, bool) for index in indices):
            return f"indices must be whole numbers; got {list(indices)}"
        if twice := sorted(index for index, times in Counter(indices).items() if times > 1):
            return f"{units} {twice} are listed twice; list each once"
        if outside := sorted(index for index in indices if not 0 <= index < self.of):
            return f"{units} {outside} are out of range; the layer has {units} 0 to {self.of - 1}"
        if len(indices) == self.of:
            return f"all {self.of} {units} would go and leave the layer empty; keep at least one"
        return ""

    def to_dict(self) -> dict[str, Any]:
        """The edit as it is written to plan.yaml."""
        head: dict[str, Any] = {"remove": self.remove, "name": self.name}
        if self.remove != "block":
            head |= {"indices": sorted(self.indices), "of": self.of}
        elif self.replace != "identity":
            head["replace"] = self.replace
        if self.damage is not None:
            head["damage"] = self.damage
        return head | {"reason": self.reason}


@dataclass(frozen=True)
class Plan:
    """Edits of a network, bound to it by a fingerprint.

    Args:
        edits: in order of the network.
        fingerprint: of the original, see `fingerprint`.
        inputs: description of an example input, see `simprune.core.example.describe`.
        budget: limits that the plan meets.
        planner: name, seed, constraints and options of the planner.
        original: costs of the original.
        expected: costs and damage of the result, as the planner computed them.
        edited: whether it was read from a file that somebody has changed since it was written, or that does not tell;
            equal plans may differ in it.

    Raises:
        ValueError: for two edits of one module, and for an edit inside a block that is removed whole.
    """

    edits: tuple[Edit, ...]
    fingerprint: str
    inputs: Mapping[str, Any]
    budget: Mapping[str, float | int | str] = field(default_factory=dict)
    planner: Mapping[str, Any] = field(default_factory=dict)
    original: Mapping[str, int] = field(default_factory=dict)
    expected: Mapping[str, float] = field(default_factory=dict)
    edited: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        counts = Counter((edit.remove, edit.name) for edit in self.edits)
        twice = sorted({name for (_, name), count in counts.items() if count > 1})
        if twice:
            raise ValueError(f"plan: {', '.join(twice)} is edited twice; merge the two edits into one")
        for edit, block in product(self.edits, self.blocks):
            if edit.name.startswith(f"{block}.") or (edit.name == block and edit.remove != "block"):
                what = f"{edit.name} lies inside {block}, which is removed whole"
                raise ValueError(f"plan: {what}; delete one of the two edits")

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the blocks that are removed."""
        return tuple(edit.name for edit in self.whole)

    @property
    def whole(self) -> tuple[Edit, ...]:
        """The edits that remove blocks."""
        return self.of_kind("block")

    def of_kind(self, kind: str) -> tuple[Edit, ...]:
        """The edits that remove units of one kind, such as channels or heads."""
        return tuple(edit for edit in self.edits if edit.remove == kind)

    def check(self, model: nn.Module) -> None:
        """Raise ValueError unless the model has the tensor names and shapes to which this plan is bound."""
        modules = dict(model.named_modules())
        for edit in self.edits:
            if edit.name not in modules:
                hint = did_you_mean(edit.name, modules)
                raise ValueError(f"plan: the model has no module named {edit.name!r}; {hint}")
            layer = modules[edit.name]
            width = getattr(layer, "out_channels", getattr(layer, "out_features", None))
            if edit.remove == "channels" and width is not None and edit.of != width:
                raise ValueError(f"plan: {edit.name} has {width} output channels, not {edit.of}")
        actual = fingerprint(model)
        if actual != self.fingerprint:
            raise ValueError(
                f"this plan was made for another model (fingerprint {self.fingerprint}, this one {actual}); "
                "make a new plan for this model, or give the model the plan was made for"
            )

    def to_dict(self) -> dict[str, Any]:
        """The content of plan.yaml."""
        head = {"simprune_plan": FORMAT, "fingerprint": self.fingerprint}
        mappings = {name: dict(getattr(self, name)) for name in MAPPINGS}
        content = {**head, **mappings, "edits": [edit.to_dict() for edit in self.edits]}
        text = json.dumps(content, skipkeys=True, default=str)
        return content | {"sha256": hashlib.sha256(text.encode()).hexdigest(), "end": True}

    def to_yaml(self) -> str:
        """The file's text: the same plan is always the same bytes."""
        return HEADER + yaml.dump(self.to_dict(), Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)

    @classmethod
    def from_yaml(cls, text: str) -> "Plan":
        """Read a plan; raises ValueError with one clear line when something is wrong with it."""
        return cls.from_dict(read_yaml(text, "plan", VALUES))

    @classmethod
    def from_dict(cls, data: Any) -> "Plan":
        """The plan that `to_dict` wrote; ValueError when something is wrong with it."""
        if not isinstance(data, dict) or "simprune_plan" not in data:
            raise ValueError("plan: expected a simprune plan (a mapping with simprune_plan, fingerprint, edits)")
        if data["simprune_plan"] not in (FORMAT, UNENDED) or isinstance(data["simprune_plan"], bool):
            known = f"this simprune reads {FORMAT}"
            raise ValueError(f"plan: format {shown(data['simprune_plan'])} is not known; {known}")
        _refuse_unknown(data, {"simprune_plan", "fingerprint", *MAPPINGS, "edits", "sha256", "end"}, "plan")
        if data["simprune_plan"] == FORMAT and data.get("end") is not True:
            raise ValueError("plan: the last line, end: true, is missing, so the file is cut off; copy it again")
        for key, kind in (("fingerprint", str), ("inputs", dict), ("edits", list)):
            if not isinstance(data.get(key), kind):
                raise ValueError(f"plan: {key} must be a {kind.__name__}; got {shown(data.get(key))}")
        for key in (*MAPPINGS, "edits"):
            _refuse_infinite(data.get(key), f"plan: {key}")
        mappings: dict[str, Any] = {name: data.get(name) or {} for name in MAPPINGS}
        for name, value in mappings.items():
            if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
                raise ValueError(f"plan: {name} must be a mapping of names; got {shown(value)}")
        if mappings["inputs"]:
            check_description(mappings["inputs"], "plan: inputs")
        plan = cls(tuple(_edit(item) for item in data["edits"]), data["fingerprint"], **mappings)
        return replace(plan, edited=data.get("sha256") != plan.to_dict()["sha256"])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write plan.yaml: whole, or not at all."""
        write_whole(Path(path), self.to_yaml())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Plan":
        """Read plan.yaml; raises FileNotFoundError or ValueError."""
        return cls.from_yaml(read_text(path))


def _refuse_infinite(value: Any, where: str) -> None:
    """Raise ValueError for NaN and infinite numbers, which no plan is written with."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: expected a finite number; got {value}")
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        if isinstance(item, dict | list | float):
            _refuse_infinite(item, f"{where}.{key}")


class PlainDumper(yaml.SafeDumper):
    """What stands in several places is written out in each of them: people misread aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class _Dumper(PlainDumper):
    """Lists of numbers on one line, so that an edit is a few lines."""


def _sequence(dumper: yaml.SafeDumper, items: list) -> yaml.Node:
    flat = all(isinstance(item, int) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=flat)


_Dumper.add_representer(list, _sequence)


def _refuse_unknown(data: dict, known: set[str], where: str) -> None:
    for key in data:
        if key not in known:
            raise ValueError(f"{where}: unknown key {shown(key)}; {did_you_mean(str(key)[:80], known)}")


def _edit(item: Any) -> Edit:
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        raise ValueError(f"plan: every edit needs remove and name; got {shown(item)}")
    _refuse_unknown(item, {entry.name for entry in fields(Edit)}, f"edit of {item['name']}")
    indices, of = item.get("indices", []), item.get("of", 0)
    if not isinstance(indices, list) or not isinstance(of, int) or isinstance(of, bool):
        raise ValueError(f"edit of {item['name']}: indices must be a list and of a whole number")
    reason, stand_in = str(item.get("reason", "")), str(item.get("replace", "identity"))
    damage = item.get("damage")  # it is for the reader only, so a value that is no number is left out
    damage = float(damage) if isinstance(damage, int | float) and not isinstance(damage, bool) else None
    return Edit(str(item.get("remove")), item["name"], tuple(indices), of, reason, stand_in, damage)  # type: ignore[arg-type]
