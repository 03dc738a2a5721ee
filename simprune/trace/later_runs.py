"""An error amid the data is one line with the number of the batch, where the model itself does not run on it."""

import functools
import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from simprune.core.batches import device_of, inputs_of, move
from simprune.core.blame import failing_module, raised_by_a_model, with_line
from simprune.core.copies import sharing
from simprune.core.peekable import WALKS, Peekable, Walk
from simprune.trace.first_run import check_answers
from simprune.trace.offload import at_hand
from simprune.trace.training_mode import training_error

P = ParamSpec("P")
R = TypeVar("R")
MODELS = {"model": "model", "small": "smaller model", "teacher": "teacher"}  # arguments, and their names in errors
DATA = ("calibration", "train", "validation", "test")  # arguments, which errors call by the same names
MEMORY = (MemoryError, torch.OutOfMemoryError)  # errors that are neither the model's fault nor the data's
LONGEST = 60.0  # seconds for which data are looked through


@contextmanager
def batches_in_errors(models: Mapping[str, nn.Module], data: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Within the block, an error of a model that is due to a batch names the batch and its number.

    The models, as they were handed over, run again on the batches that walks are at, and on all data where an edited
    model, or batches that were stored, have failed. Where they run, the fault is not the data's: an error in the
    forward pass of an edited model, or on part of a batch, names the module, and any other is passed on as it is.

    Args:
        models: by their names in errors.
        data: batches, or None, by their names in errors; they are looked through for up to a minute.

    Raises:
        ValueError: in place of what a model raises, in one line.

    >>> model, batches = nn.Linear(4, 3), Peekable([torch.zeros(2, 4), torch.zeros(2, 5)], "test")
    >>> with batches_in_errors({"model": model}):
    ...     for batch in batches:
    ...         answer = model(batch)
    Traceback (most recent call last):
    ValueError: the model does not run on test batch 2: RuntimeError: mat1 and mat2 shapes cannot be multiplied...
    """
    before = list(WALKS)
    try:
        yield
    except Exception as error:
        for walk in [walk for walk in reversed(WALKS) if walk not in before]:
            _check(models, walk, error)
        if raised_by_a_model(error):
            _look_through(models, data or {}, error)
        if models and not isinstance(error, MEMORY) and (module := failing_module(error)) is not None:
            where = f", in {module}" if module else ""
            raise ValueError(
                f"the model runs on all batches, but not on parts of them or not with layers changed: "
                f"{with_line(error)}{where}; it may take a batch size or a width for granted"
            ) from error
        raise
    finally:
        WALKS.clear()
        WALKS.extend(before)


def names_failing_batches(function: Callable[P, R]) -> Callable[P, R]:
    """A decorator: the function runs within `batches_in_errors` of the models and the batches among its arguments."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def naming(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            handed = signature.bind_partial(*args, **kwargs).arguments
        except TypeError:  # of wrong arguments, which the function itself raises in its own name
            handed = {}
        models = {name: handed[argument] for argument, name in MODELS.items() if argument in handed}
        data = {name: handed.get(name) for name in DATA}
        with batches_in_errors({name: model for name, model in models.items() if isinstance(model, nn.Module)}, data):
            return function(*args, **kwargs)

    return naming


def _look_through(models: Mapping[str, nn.Module], data: Mapping[str, Any], error: Exception) -> None:
    start = time.monotonic()
    for name in [name for name, batches in data.items() if batches is not None]:
        for number, batch in enumerate(Peekable.of(data[name], name), 1):
            if time.monotonic() - start > LONGEST:
                return
            _check(models, Walk(name, number, batch), error)


def _check(models: Mapping[str, nn.Module], walk: Walk, error: Exception) -> None:
    """Raise ValueError if a model does not run on the batch of a walk; in training mode as well, if it is to train."""
    which = f"{walk.name} batch {walk.number}"
    for name, handed in models.items():
        model = at_hand(handed)
        example = move(inputs_of(walk.batch), device_of(model))
        try:
            check_answers(model, walk.batch, example, walk.name, which, name)
        except ValueError as said:
            raise ValueError(str(said)) from error
        if walk.name == "train":
            said = training_error(sharing(model), example)
            if said is not None:
                raise ValueError(f"the {name} does not run on {which} in training mode: {with_line(said)}") from error
