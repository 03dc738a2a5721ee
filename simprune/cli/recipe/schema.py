"""The schema of recipes, made from `simprune.settings`, and a composed recipe as checked settings."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING, DictConfig, OmegaConf

from simprune.arguments import SMALLEST, check_budget, check_gates, check_rounds
from simprune.checks import Gate
from simprune.core.options import Chosen, Options, default_of
from simprune.settings import REBUILT, Finetune, Recipe, Settings, group, recipe_table
from simprune.tune.frontier import check_shares


def _schema(name: str, table: list[dataclasses.Field], of: type) -> type:
    """Keys with their defaults and without types, which `simprune.settings` checks in its own words."""
    keys: list[Any] = []
    for option in table:
        inner = group(option, of)
        if inner is not None and not issubclass(inner, Chosen):
            nested = _schema(inner.__name__, list(dataclasses.fields(inner)), inner)  # pyright: ignore
            keys.append((option.name, nested, field(default_factory=nested)))
        else:
            default = MISSING if option.name in ("model", "data") else default_of(option)
            value = list(default) if isinstance(default, tuple) else default
            keys.append((option.name, Any, field(default_factory=lambda value=value: value)))
    schema = make_dataclass(f"{name}Schema", keys)
    schema.__module__ = __name__  # importable by its name, so that launchers of other processes send it by reference
    globals()[schema.__name__] = schema
    return schema


RecipeSchema = _schema("Recipe", recipe_table(), Recipe)


def several(budget: Any) -> tuple[str, list[Any]] | None:
    """The kind of cost and the shares of a frontier's budgets; None for a single budget.

    >>> several([0.9, 0.5]), several({"params": [0.8, 0.6]}), several({"macs": 0.5})
    (('macs', [0.9, 0.5]), ('params', [0.8, 0.6]), None)
    """
    limits = budget if isinstance(budget, Mapping) else {"macs": budget}
    for kind, limit in limits.items():
        if isinstance(limit, Sequence) and not isinstance(limit, str):
            if len(limits) > 1:
                raise ValueError(f"budget: a frontier is along one kind of cost; got {', '.join(limits)}")
            return str(kind), list(limit)
    return None


def typed(config: DictConfig) -> DictConfig:
    """A composed recipe that was checked against the schema, which has no keys that `+key=value` could have added."""
    merged = OmegaConf.merge(OmegaConf.structured(RecipeSchema), OmegaConf.to_container(config))
    assert isinstance(merged, DictConfig)
    return merged


def settings(config: DictConfig, command: str) -> Recipe:
    """The recipe as checked settings, before any model or data is touched.

    Args:
        config: the composed recipe.
        command: its name; a command has its own required keys.

    Raises:
        ValueError: in one line, for a missing value, and for a value that is not what its option expects.
        KeyError: for an unknown part.
        FileNotFoundError: for a missing file.
    """
    merged = typed(config)
    missing = sorted(OmegaConf.missing_keys(merged)) or [key for key in ("model", "data") if merged[key] is None]
    if missing:
        raise ValueError(f"{missing[0]} is missing: set it in the recipe or add {missing[0]}=...")
    content: Any = OmegaConf.to_container(merged, resolve=True)
    if content["finetune"]["epochs"] == 0:
        Finetune.of(content["finetune"])
        content["finetune"] = None
    recipe = Recipe.of(content)
    if command in ("plan", "compress") and recipe.plan is None:
        along = several(recipe.budget)
        if along is not None and command == "plan":
            Settings.of_command("frontier", {"kind": along[0], "budgets": along[1]})
            check_shares(*along)
        else:
            free = recipe.planner.options.get("threshold") is not None
            if recipe.rounds > 1:
                check_rounds(recipe, None)
            check_budget(along[1] if along else recipe.budget or (None if free else {}), recipe.planner, command)
    if command in REBUILT and (recipe.bundle is None) == (recipe.pruned.function is None):
        what = "bundle is missing" if recipe.bundle is None else "bundle and pruned.function are both given"
        raise ValueError(
            f"{what}: add either bundle=FOLDER, a folder that `simprune compress` wrote, or "
            "pruned.function=package.module:function and pruned.weights=FILE.safetensors"
        )
    if recipe.bundle is not None and not Path(recipe.bundle).is_dir():
        raise FileNotFoundError(f"no bundle folder {recipe.bundle}")
    if recipe.plan is not None and not Path(recipe.plan).is_file():
        raise FileNotFoundError(f"no plan file {recipe.plan}")
    goes_on = command == "analyze" or recipe.budget == SMALLEST or recipe.finetune is not None
    if recipe.resume is not None and not goes_on:
        raise ValueError("resume goes on with a search or a training: add budget=smallest or finetune, or leave it out")
    gates(recipe)
    device(recipe)
    return recipe


@dataclass(frozen=True)
class GateKeys(Options):
    """A gate in a recipe."""

    WHERE = "check.gates"
    measure: Any = None
    limit: Any = None
    confidence: Any = 0.95
    options: Any = field(default_factory=dict)
    inputs: Any = "clean"
    output: Any = None

    def __post_init__(self) -> None:
        for key in ("measure", "limit"):
            if getattr(self, key) is None:
                raise ValueError(f"check.gates: a gate needs {key}; write {{measure: disagreement, limit: 0.05}}")


def gates(recipe: Recipe) -> list[Gate] | None:
    """The recipe's gates, None for the default ones, which fit the outputs; ValueError or KeyError as of `Gate`."""
    check = recipe.check
    if check.gates is None and check.name is None:
        raise ValueError(
            "check: expected a check set or gates; got null, which would check nothing; leave it out for the default "
            "set, or leave out data.test to compare nothing"
        )
    if check.gates is None:
        return None if check.name == "default" else check_gates(check.choice)
    return check_gates([Gate(**vars(GateKeys.of(gate))) for gate in check.gates])


def device(recipe: Recipe) -> torch.device:
    """The device to run on; ValueError when this machine has no such device."""
    if recipe.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=recipe.device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # the kind of error differs by backend
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device {recipe.device!r} cannot be used: {reason}") from None
