"""The recipe inside a bundle from elsewhere: names of simprune's own parts with plain values, and nothing that runs.

A recipe that the user names is code: the functions in it are called. Nobody has named the recipe of a bundle, so it is
checked whole before Hydra sees it, and again as it was composed.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from simprune import zoo
from simprune.core import registry
from simprune.core.options import shown
from simprune.core.reading import read_text, read_yaml
from simprune.core.sizes import refuse_huge
from simprune.settings import REBUILT, recipe_table

BYTES = 1 << 20
# Where results go, and another way to name a model, are for the user to say: a bundle must not overwrite files.
NOT_READ = ("junit", "to", "bundle", "pruned", "resume", "objective")
READ = tuple(
    dict.fromkeys(entry.name for command in REBUILT for entry in recipe_table(command) if entry.name not in NOT_READ)
)
NAMED = re.compile(r"(simprune\.zoo|torch\.nn):([A-Za-z]\w*)")  # functions that a bundle may name
# Options of from_pretrained that choose among weights, and cannot name code.
CHOICES = ("pretrained", "task", "gguf_file", "revision", "subfolder", "dtype", "torch_dtype", "attn_implementation")
ATTENTION = ("eager", "sdpa", "flash_attention_2", None)
EPOCHS = 1000  # of the digits' network, which is trained where it is not stored
TRUST = "if you trust it, name a recipe yourself: recipe=FOLDER/recipe.yaml"


def recipe_of(folder: str | Path, standalone: list[str]) -> dict[str, Any]:
    """What the recipe inside a bundle says about the keys that commands on bundles read.

    Args:
        folder: of the bundle.
        standalone: the only list of defaults that the recipe may have.

    Raises:
        FileNotFoundError: for a folder without a recipe.
        ValueError: for what is no recipe of a bundle, what could run code, and for a file that is too large or deep.
    """
    path = Path(folder) / "recipe.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"no bundle in {folder}: it has no recipe.yaml")
    content = read_yaml(read_text(path, BYTES), str(path))
    content = {} if content is None else content
    if not isinstance(content, dict) or content.pop("defaults", standalone) != standalone:
        raise ValueError(f"{path} is not the recipe of a bundle; name it yourself: recipe={path}")
    for where, odd in _not_plain(content, ""):
        raise ValueError(f"{path}: {where or 'the recipe'} holds {odd}; a bundle's recipe holds plain values; {TRUST}")
    for kind in ("model", "data", "check", "format"):
        if content.get(kind) is not None:
            check_harmless(kind, content[kind])
    return content


def check_harmless(kind: str, choice: Any) -> None:
    """Raise ValueError for a choice in a bundle's recipe that could run anything but simprune's own code.

    Args:
        kind: "model", "data", "check" or "format".
        choice: a name, or a mapping with `name` and options.

    >>> check_harmless("model", {"name": "function", "function": "os:system"})
    Traceback (most recent call last):
    ValueError: model: the bundle's recipe would call os:system, which is not simprune's own; if you trust it, ...
    """
    options = {"name": choice} if isinstance(choice, str) else choice
    if not isinstance(options, Mapping):
        raise ValueError(f"{kind}: expected a name, or a mapping with name and options; got {shown(choice)}")
    name, function = options.get("name"), options.get("function")
    if function is not None and not _is_layer(function):
        raise ValueError(_refusal(kind, f"would call {function}"))
    if isinstance(name, str):
        part = registry.parts(kind).get(name)
        if part is not None and not part.make.__module__.startswith("simprune."):
            raise ValueError(_refusal(kind, f"would call {part.make.__module__}:{name}"))
    if kind == "data" and function is not None:
        raise ValueError(_refusal(kind, f"would call {function}"))
    if kind == "model" and name == "transformers":
        for key, value in options.items():
            if key not in ("name", *CHOICES) or (key == "attn_implementation" and value not in ATTENTION):
                raise ValueError(f"model: the bundle's recipe gives {key}={shown(value)}; it may not; {TRUST}")
    gates = options.get("gates") if kind == "check" else None
    runs_tasks = any(isinstance(gate, Mapping) and gate.get("measure") == "task_accuracy_drop" for gate in gates or ())
    if kind == "check" and (name == "tasks" or runs_tasks):
        raise ValueError(f"check: the bundle's recipe would run tasks of lm_eval; say check=default; {TRUST}")


def check_modest(choice: Any) -> None:
    """Raise ValueError for a model in a bundle's recipe that would take more memory than there is, or be trained long.

    Args:
        choice: a name, or a mapping with `name` and options, that is harmless otherwise.

    >>> check_modest({"name": "digits", "epochs": 10**9})
    Traceback (most recent call last):
    ValueError: model: the bundle's recipe would train for 1,000,000,000 epochs; expected at most 1,000
    """
    options = dict(choice) if isinstance(choice, Mapping) else {"name": choice}
    name, function = options.pop("name", None), options.pop("function", None)
    what = "model: the network that the bundle's recipe asks for"
    if name == "digits":
        epochs = options.get("epochs", 0)
        if isinstance(epochs, int) and epochs > EPOCHS:
            raise ValueError(
                f"model: the bundle's recipe would train for {epochs:,} epochs; expected at most {EPOCHS:,}"
            )
        shape = {key: options[key] for key in ("widths", "depths") if key in options}
        refuse_huge(lambda: zoo.ResidualCNN(in_channels=1, **shape), what)
    elif function is not None:
        options.pop("weights", None)
        refuse_huge(lambda: registry.bound("model", {"name": "function", "function": function, **options})(), what)


def _refusal(kind: str, what: str) -> str:
    return f"{kind}: the bundle's recipe {what}, which is not simprune's own; {TRUST}"


def _is_layer(function: Any) -> bool:
    """Whether a name is that of a network of the zoo, or of one of torch's layers; nothing is imported for it."""
    match = NAMED.fullmatch(function) if isinstance(function, str) else None
    if match is None:
        return False
    if match[1] == "simprune.zoo":
        return match[2] in zoo.__all__
    layer = getattr(nn, match[2], None)
    return isinstance(layer, type) and issubclass(layer, nn.Module)


def _not_plain(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """Where nested values hold what Hydra or OmegaConf would act on, or what is no plain value, and what it is."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            name = f"{where}.{key}" if where else str(key)
            if not isinstance(key, str) or "${" in key:
                yield where, f"the key {shown(key)}"
            elif key.startswith("_"):
                yield where, f"the private name {shown(key)}"
            else:
                yield from _not_plain(item, name)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _not_plain(item, f"{where}[{number}]")
    elif isinstance(value, str):
        if "${" in value or value == "???":
            yield where, f"the interpolation {shown(value)}"
    elif not isinstance(value, bool | int | float | type(None)):
        yield where, f"a {type(value).__name__}"
