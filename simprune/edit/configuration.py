"""Updating the configuration that a model carries: transformers' `from_pretrained` rebuilds the model from it.

Which field states a size is found out by what the field does: a model is built from the configuration with another
value, on the meta device, which costs milliseconds. A field whose number equals a width by chance (a sliding window, a
number of positions) changes no tensor, or other ones, and stays.
"""

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import nn

from simprune.core.batches import device_of, move
from simprune.core.cost import Example
from simprune.core.example import example_of
from simprune.edit.reopening import Reopening, differing, is_pretrained, rebuilt, saved
from simprune.trace.attention import HEAD_COUNTS, HEAD_WIDTHS, KEY_VALUE_COUNTS, attentions
from simprune.trace.bypass import Bypass

Shapes = dict[str, tuple[int, ...]]
Wrong = dict[tuple[str, int], tuple[int, int]]  # by tensor and dimension: the stated and the actual size
Field = tuple[tuple[str, ...], str]  # the names of the configurations that lead to it, and its own name
# Fields that are None where a class derives a size from another field, such as `n_inner`.
DERIVED = re.compile(r"dim|size|inner|width|hidden")
# Fields by which encoder and decoder that share one configuration state their heads apart.
SIDES = ("encoder", "decoder")
COUNTS = (*HEAD_COUNTS, "attention_heads")
TRIES, SECONDS = 64, 4  # values of fields that change sizes, and first fields of pairs: building a model takes 0.1 s


def restate(model: nn.Module, example: Example | None = None) -> bool:
    """Change a model's configuration, in place, so that a model built from it has the model's shapes.

    The configuration stays as it is where it cannot express the shapes (layers of different widths, heads that do not
    divide the width where the class requires it), and where a model that is built from it computes something else, such
    as a scale of the new width. `from_pretrained` then says that shapes differ, and the model is rebuilt from its plan.

    Args:
        model: an edited model.
        example: arguments on which a model of the new configuration has to agree; None: shapes are compared alone.

    Returns:
        Whether the configuration describes the shapes; True for a model without configuration.
    """
    config = getattr(model, "config", None)
    if config is None or not is_pretrained(model):
        return True
    wrong = mismatches(model, config)
    if not wrong:
        return wrong is not None
    for trial in proposals(model, config):
        other, outcome = (None, None) if example is None else rebuilt(model, trial, example)
        if outcome is None or outcome.opens:
            _take_over(model, config, trial)
            if other is not None:
                _remember(model, other, set(wrong.values()))
            return True
    return False


def reopens(model: nn.Module, batch: Any) -> Reopening:
    """Whether transformers' `from_pretrained` opens a model as it is.

    The model is saved into a temporary folder and opened. The opened model must have the same tensors, modules with the
    same settings, and on two rows of the batch the same outputs.

    Args:
        model: of transformers, such as `simprune.apply` returns it.
        batch: inputs of the model.

    Returns:
        `opens`, the `reason` why not, and the largest `difference` of an output.

    Raises:
        ValueError: for a model that is not of transformers.
    """
    if not is_pretrained(model):
        raise ValueError(f"model: expected a model of transformers; got a {type(model).__name__}")
    example = move(example_of(batch), device_of(model))
    outcome = saved(model, example)
    names = stand_ins_of(model)
    if names and not outcome.opens:
        return replace(outcome, reason=f"no configuration says that {names} went ({outcome.reason})")
    if outcome.opens or not mismatches(model, getattr(model, "config", None)):
        return outcome
    # the sizes are not those of the configuration: where one could state them, it is said why it does not
    refusals = [rebuilt(model, trial, example)[1].reason for trial in proposals(model, model.config)]
    if reason := next(filter(None, refusals), ""):
        return Reopening(False, f"{outcome.reason}, and with a configuration of its sizes {reason}")
    return Reopening(False, f"{outcome.reason}, and no configuration of {type(model).__name__} states its sizes")


def stand_ins_of(model: nn.Module) -> str:
    """Names of modules in whose place stand-ins are, for a sentence; empty where there are none."""
    names = [name for name, module in model.named_modules() if isinstance(module, Bypass)]
    return ", ".join(names[:3]) + (" and others" if len(names) > 3 else "")


def built(model: nn.Module, config: Any) -> Shapes | None:
    """Shapes of the tensors of a model built from a configuration; None if it cannot be built."""
    other = without_weights(model, config)
    return None if other is None else {name: tuple(tensor.shape) for name, tensor in other.state_dict().items()}


def without_weights(model: nn.Module, config: Any) -> nn.Module | None:
    """A model of the same class from a configuration, on the meta device; None if it cannot be built."""
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            return type(model)(copy.deepcopy(config))
    except Exception:  # classes refuse configurations with errors of any type
        return None


def mismatches(model: nn.Module, config: Any) -> Wrong | None:
    """Sizes that differ in a model built from the configuration; None where it has other tensors or cannot be built."""
    stated = built(model, config)
    actual = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if stated is None or stated.keys() != actual.keys():
        return None
    return {
        (name, dim): (old, new)
        for name, shape in actual.items()
        for dim, (old, new) in enumerate(zip(stated[name], shape, strict=True))
        if old != new
    }


def fields_of(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[Field, Any]]:
    """The fields of a configuration and of those inside it, such as `text_config`, with their values."""
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_dict") and hasattr(value, "attribute_map"):
            yield from fields_of(value, (*path, name))
        elif not name.startswith("_"):
            yield (path, name), value


def owner_of(config: Any, field: Field) -> Any:
    """The configuration that has a field."""
    for name in field[0]:
        config = getattr(config, name)
    return config


def changed(config: Any, values: Mapping[Field, Any]) -> Any:
    """A copy of a configuration with other values; without the checks that classes make on assignment."""
    trial = copy.deepcopy(config)
    for field, value in values.items():
        vars(owner_of(trial, field))[field[1]] = value
    return trial


def proposals(model: nn.Module, config: Any) -> Iterator[Any]:
    """Configurations of the model's shapes: with the heads that it has, and with other sizes replaced.

    They come without and with the width of a head, which some classes read although it is not their field.
    """
    plain, wide = (_heads(model, config, state_head_width) for state_head_width in (False, True))
    for values in [plain] if plain == wide else [plain, wide]:
        trial = changed(config, values)
        wrong = mismatches(model, trial)
        while wrong:
            trial, wrong = _step(model, trial, wrong) or (trial, None)
        if wrong is not None:
            yield trial


def _step(model: nn.Module, config: Any, wrong: Wrong) -> tuple[Any, Wrong] | None:
    """A configuration with fewer wrong sizes, and none that was right before; None where there is none.

    One field is changed, or two: a class may derive a second size from the first.
    """
    seconds = []
    for trial, left in islice(_tried(model, config, wrong), TRIES):
        if left.keys() < wrong.keys():
            return trial, left
        seconds.append((trial, left))
    for first, left in seconds[:SECONDS]:
        for trial, after in islice(_tried(model, first, left), TRIES):
            if after.keys() < wrong.keys():
                return trial, after
    return None


def _tried(model: nn.Module, config: Any, wrong: Wrong) -> Iterator[tuple[Any, Wrong]]:
    """Copies of a configuration with one field changed that states a size of the model, and what is wrong with them."""
    for field, values in _alternatives(config, wrong):
        for value in values:
            trial = changed(config, {field: value})
            left = mismatches(model, trial)
            if left == wrong:  # the field states none of the sizes, whatever its value
                break
            if left is not None:
                yield trial, left


def _alternatives(config: Any, wrong: Wrong) -> Iterator[tuple[Field, list[int | float]]]:
    """Fields that may state a size that is wrong, with the values that the actual sizes suggest."""
    pairs = dict.fromkeys((old, new) for old, new in wrong.values() if old and new)  # sizes of 0 say nothing
    for field, value in fields_of(config):
        if isinstance(value, bool):
            continue
        if isinstance(value, int):
            yield field, [new for old, new in pairs if old == value]
        elif isinstance(value, float) and field[1].endswith("ratio"):  # of two widths, such as `mlp_ratio`
            yield field, [value * new / old for old, new in pairs]
        elif value is None and DERIVED.search(field[1]):
            yield field, [*dict.fromkeys(new for _, new in pairs)]


def _heads(model: nn.Module, config: Any, state_width: bool) -> dict[Field, int]:
    """Fields that state numbers of heads which have changed, and on demand their width, with what modules hold.

    Encoder and decoder that share one configuration state their heads in fields of their own.
    """
    paths = {id(owner_of(config, field)): field[0] for field, _ in fields_of(config)}
    stated = without_weights(model, config)
    before = {} if stated is None else {name: (a.heads, a.groups) for name, a in attentions(stated).items()}
    layouts = {name: a for name, a in attentions(model).items() if before.get(name) != (a.heads, a.groups)}
    held: dict[Field, set[int]] = {}
    for name, module in model.named_modules():
        parts = name.split(".")
        above = (model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts), -1, -1))
        path = next((paths[id(own)] for m in above if id(own := getattr(m, "config", None)) in paths), None)
        if path is None:
            continue
        if state_width and (width := next((w for key in HEAD_WIDTHS if type(w := vars(module).get(key)) is int), 0)):
            held.setdefault((path, HEAD_WIDTHS[0]), set()).add(width)
        if (layout := layouts.get(name)) is not None:
            owner = vars(owner_of(config, (path, "")))
            for fields, count in ((COUNTS, layout.heads), (KEY_VALUE_COUNTS, layout.key_values)):
                for field in (*fields, *(f"{side}_{field}" for side in SIDES if side in parts for field in fields)):
                    if isinstance(owner.get(field), int):
                        held.setdefault((path, field), set()).add(count)
    return {field: min(counts) for field, counts in held.items() if len(counts) == 1}


def _remember(model: nn.Module, other: nn.Module, pairs: set[tuple[int, int]]) -> None:
    """Sizes of before the edit that modules still state become those of the same model with its new configuration."""
    for name, key, here, there in list(differing(model, other)):
        if (here, there) in pairs:
            setattr(model.get_submodule(name), key, there)


def _take_over(model: nn.Module, config: Any, trial: Any) -> None:
    """Write the fields that differ into the configuration, and into copies of it that modules hold, as in T5."""
    before = dict(fields_of(config))
    known = {id(owner_of(config, field)) for field in before}
    others = {id(own): own for module in model.modules() if (own := getattr(module, "config", None)) is not None}
    for field, value in fields_of(trial):
        old = before.get(field)
        if isinstance(value, int | float) and (field not in before or value != old):
            owner = owner_of(config, field)
            setattr(owner, field[1], value)
            for other in others.values():
                if id(other) not in known and type(other) is type(owner) and vars(other).get(field[1]) == old:
                    setattr(other, field[1], value)
