"""Opening an edited model of transformers again, and comparing both: tensors, settings of modules, and outputs.

A configuration can say numbers of layers and widths that all layers share. It cannot say that a layer has lost its
attention, that widths differ, or that a scale belongs to an earlier width. transformers then fills the gaps with random
weights, or computes something else, without an error. So nothing is concluded from names: the opened model must have
the same tensors, the same modules with the same settings, and the same outputs.
"""

import copy
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core.batches import device_of, tensors_in
from simprune.core.cost import Example
from simprune.core.store import UNNAMED, naming
from simprune.trace.context import eval_mode, uncached

TOLERANCE = 1e-5  # share of the largest entry of an output, for types of single and double precision
ROUNDING = 8  # the same for others, in units of their precision: what is not saved may be rounded differently
# Settings that do not change an output: private ones, and dropout, whose rates may depend on the depth.
UNRELATED = re.compile(r"\._|\.(training|name_or_path|gradient_checkpointing)$|[Dd]rop")
SETTINGS = (bool, int, float, str, type(None))  # types of the attributes that have to agree


@dataclass(frozen=True)
class Reopening:
    """Whether `from_pretrained` opens a model as it is.

    Args:
        opens: whether it does.
        reason: why not; empty where it does.
        difference: the largest difference of an output, as a share of its largest entry; None where none was compared.

    >>> print(Reopening(False, "2 tensors are missing, such as h.0.weight"))
    opens with from_pretrained: no, because 2 tensors are missing, such as h.0.weight
    """

    opens: bool
    reason: str = ""
    difference: float | None = None

    def __bool__(self) -> bool:
        return self.opens

    def __str__(self) -> str:
        if self.opens:
            return f"opens with from_pretrained: yes (largest difference of an output {self.difference or 0.0:.2g})"
        return f"opens with from_pretrained: no, because {self.reason}"

    def to_dict(self) -> dict[str, Any]:
        """As a report stores it."""
        return {"opens": self.opens, "reason": self.reason, "difference": self.difference}


def is_pretrained(model: nn.Module) -> bool:
    """Whether a model is one of transformers, which `save_pretrained` saves."""
    transformers = sys.modules.get("transformers")
    return transformers is not None and isinstance(model, transformers.PreTrainedModel)


def saved(model: nn.Module, example: Example) -> Reopening:
    """Whether a model of transformers is the same after `save_pretrained` into a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        return saved_in(model, folder, example)[1]


def saved_in(model: nn.Module, folder: str, example: Example, **options: Any) -> tuple[nn.Module | None, Reopening]:
    """Save a model of transformers into a folder, and open it there.

    Args:
        model: the model.
        folder: that gets the files.
        example: arguments on which both have to agree.
        options: of `save_pretrained`.

    Returns:
        The model that opens, if one does, and whether it is the same.

    Raises:
        OSError: with the folder, where the disk is full.
    """
    fields: Any = vars(model.config)
    before = dict(fields)
    with quiet(), torch.random.fork_rng(devices=[]):
        try:
            with naming(folder):
                model.save_pretrained(folder, **options)  # pyright: ignore[reportCallIssue]
            other, gaps = _open(model, folder)
        except Exception as error:  # configurations and classes refuse with errors of any type
            if isinstance(error, OSError) and error.errno in UNNAMED:  # a full disk says nothing of the model
                raise
            return None, Reopening(False, _words(error))
        finally:  # saving writes the class and the type of the weights into the configuration
            fields.clear()
            fields.update(before)
        return other, _compared(model, other, gaps, example, sizes=True)


def rebuilt(model: nn.Module, config: Any, example: Example) -> tuple[nn.Module | None, Reopening]:
    """As `saved`, from another configuration and the tensors in memory, without files and without second weights.

    Returns:
        The other model, if it could be built, and whether it is the same. Sizes that modules only remember are not
        compared, because they may be those of before the edit.
    """
    left_out = getattr(model, "_keys_to_ignore_on_save", None) or ()
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name not in left_out}
    with quiet(), torch.random.fork_rng(devices=[]):
        try:
            stored = type(config).from_dict(json.loads(copy.deepcopy(config).to_json_string(use_diff=False)))
            other, gaps = _open(model, None, config=stored, state_dict=tensors, dtype=getattr(model, "dtype", None))
        except Exception as error:  # configurations and classes refuse with errors of any type
            return None, Reopening(False, _words(error))
        return other, _compared(model, other, gaps, example, sizes=False)


def _open(model: nn.Module, folder: str | None, **options: Any) -> tuple[nn.Module, Mapping[str, Any]]:
    """The opened model on the device of `model`, and what transformers says of its tensors."""
    kind: Any = type(model)
    other, gaps = kind.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    return other.to(device_of(model)), gaps


def _compared(model: nn.Module, other: nn.Module, gaps: Mapping[str, Any], example: Example, sizes: bool) -> Reopening:
    for key, words in (
        ("mismatched_keys", "have another shape"),
        ("missing_keys", "are missing"),
        ("unexpected_keys", "are not expected"),
    ):
        if names := sorted(entry if isinstance(entry, str) else entry[0] for entry in gaps.get(key) or ()):
            return Reopening(False, f"{len(names)} tensors {words}, such as {names[0]}")
    args, kwargs = example
    with eval_mode(model, other), uncached(model), uncached(other), torch.no_grad():
        try:
            expected, actual = (list(tensors_in(net(*args, **kwargs))) for net in (model, other))
        except Exception as error:  # a foreign forward pass may raise anything
            return Reopening(False, _words(error))
    for where, key, here, there in differing(model, other):  # after the pass, in which some modules set them
        if sizes or not (type(here) is type(there) is int):
            return Reopening(False, f"{where}.{key} is {here} here and {there} in the model that opens")
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in actual]:
        return Reopening(False, "its outputs have other shapes")
    apart = max((_distance(a, b) for a, b in zip(actual, expected, strict=True)), default=0.0)
    allowed = max((ROUNDING * torch.finfo(x.dtype).eps for x in expected if x.is_floating_point()), default=0.0)
    if not apart <= max(allowed, TOLERANCE):
        return Reopening(False, f"its outputs differ by {apart:.2g} of the largest", apart)
    return Reopening(True, difference=apart)


def differing(model: nn.Module, other: nn.Module) -> Iterator[tuple[str, str, Any, Any]]:
    """Settings that differ between modules of one name, such as a kind of attention: (module, setting, here, there)."""
    opened = dict(other.named_modules())
    for name, module in model.named_modules():
        for key, here in vars(module).items() if name in opened else ():
            there = vars(opened[name]).get(key, here)
            plain = isinstance(here, SETTINGS) and isinstance(there, SETTINGS)
            if plain and here != there and not UNRELATED.search(f"{type(module).__name__}.{key}"):
                yield name, key, here, there


def _distance(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest entry."""
    if not expected.numel() or torch.equal(actual, expected):
        return 0.0
    actual, expected = actual.double(), expected.double()
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def _words(error: Exception) -> str:
    """The first line of an error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block transformers prints no progress and no list of tensors."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
