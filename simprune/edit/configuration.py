"""Updating the configuration that a model carries: transformers' `from_pretrained` rebuilds the model from it."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from simprune.trace.attention import HEAD_COUNTS, HEAD_WIDTHS, KEY_VALUE_COUNTS, attentions

DERIVED = ("n_inner",)  # None where a class derives the size from another field


def restate(model: nn.Module) -> bool:
    """Change a model's configuration, in place, so that a model built from it has the model's shapes.

    The configuration stays as it is where it cannot express the shapes: layers of different widths, or heads that do
    not divide the width where the class requires it. Such a model is rebuilt from its plan.

    Returns:
        Whether the configuration describes the shapes; True for a model without configuration.
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "save_pretrained"):
        return True
    for trial in _proposals(model, config):
        if _mismatches(model, trial) == set():
            for field, value in vars(trial).items():
                if vars(config).get(field) is not value and isinstance(value, int):
                    setattr(config, field, value)
            return True
    return False


def _proposals(model: nn.Module, config: Any) -> Iterator[Any]:
    """Configurations to try: as it is; with the actual numbers of heads; and with the other sizes replaced as well.

    The last two come a second time with the width of a head, which some classes read although it is not their field.
    Fields are set without the checks that classes make on assignment: building the model checks all fields together.
    """
    yield config
    layouts = list(attentions(model).values())
    for state_head_width in (False, True):
        trial = copy.deepcopy(config)
        for fields, counts in (
            (HEAD_COUNTS, {layout.heads for layout in layouts}),
            (KEY_VALUE_COUNTS, {layout.groups for layout in layouts}),
            (HEAD_WIDTHS[:1] if state_head_width else (), {layout.width for layout in layouts}),
        ):
            for field in fields:
                if len(counts) == 1 and (isinstance(vars(trial).get(field), int) or fields == HEAD_WIDTHS[:1]):
                    vars(trial)[field] = min(counts)
        yield trial
        trial = copy.deepcopy(trial)
        for old, new in _mismatches(model, trial) or ():
            stated = [field for field, value in vars(trial).items() if value == old and not isinstance(value, bool)]
            for field in stated or [field for field in DERIVED if hasattr(trial, field)]:
                vars(trial)[field] = new
        yield trial


def _mismatches(model: nn.Module, config: Any) -> set[tuple[int, int]] | None:
    """(stated, actual) sizes that differ in a model built from the configuration; None if it cannot be built."""
    try:
        with torch.device("meta"):
            stated = type(model)(copy.deepcopy(config)).state_dict()
    except Exception:  # classes refuse configurations with errors of any type
        return None
    actual = model.state_dict()
    if stated.keys() != actual.keys():
        return None
    return {
        (old, new)
        for name, tensor in actual.items()
        for old, new in zip(stated[name].shape, tensor.shape, strict=True)
        if old != new
    }
