"""Choices in recipes: Hydra's groups, fed from the registry, and what the command line says of them."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from simprune.core.options import Chosen, default_of
from simprune.core.registry import parts
from simprune.settings import Check, Finetune, Planner, recipe_table

# Keys of a recipe that are groups, and the kinds of their parts. `reconstruct` is none: it may be patterns of names.
GROUPS = {
    each.name: each.metadata["kind"]
    for each in recipe_table()
    if each.metadata["kind"] and each.name not in ("structures", "reconstruct")
}
COMMON: dict[str, type[Chosen]] = {"planner": Planner, "check": Check}
CHOSEN = "chosen."  # where options of choices stand on their way through Hydra
REPLACED = ("budget", "reconstruct")  # keys whose value another one replaces as a whole


def store_groups() -> None:
    """One option of a group for every part there is, and the recipe `base` with the defaults: no file per part."""
    store = ConfigStore.instance()
    for key, kind in GROUPS.items():
        for name in parts(kind):
            store.store(group=key, name=name, node={"name": name}, provider="simprune")
    store.store(group="finetune", name="default", node=Finetune().to_dict(), provider="simprune")
    store.store(group="finetune", name="none", node={"epochs": 0}, provider="simprune")
    chosen = {each.name: default_of(each) for each in recipe_table() if each.name in GROUPS}
    groups = [{key: name} for key, name in chosen.items() if isinstance(name, str)]
    defaults = ["recipe_schema", "run", *groups, {"finetune": "none"}, {"check": "default"}, "_self_"]
    store.store(name="base", node={"defaults": defaults}, provider="simprune")


def rewritten(overrides: Sequence[str]) -> list[str]:
    """Overrides such that a choice can be given any option, and any budget can follow any other.

    Hydra refuses keys that are not there, and merges mappings with nothing but mappings. Options of choices therefore
    go through it under the key `chosen`, from which `settled` takes them.

    >>> rewritten(["budget=[0.9,0.5]", "budget.macs=0.3", "planner.round_to=8", "seed=1"])
    ['budget=null', 'budget=[0.9,0.5]', '++budget.macs=0.3', '++chosen.planner.round_to=8', 'seed=1']
    """
    changed: list[str] = []
    for override in overrides:
        key, _, value = override.partition("=")
        head, dot, _ = key.partition(".")
        if key in REPLACED:
            changed.append(f"{key}=null")
        if dot and head in GROUPS:
            changed.append(f"++{CHOSEN}{override}")
        else:
            mapping = (dot and head in REPLACED) or (key in GROUPS and value.startswith("{"))
            changed.append(f"++{override}" if mapping else override)
    return changed


def as_typed(override: str) -> str:
    """A rewritten override as somebody typed it.

    >>> as_typed("++chosen.planner.round_to=8"), as_typed("++budget.macs=0.3")
    ('planner.round_to=8', 'budget.macs=0.3')
    """
    return override.lstrip("+").removeprefix(CHOSEN)


def settled(config: DictConfig, overrides: Sequence[str], folder: Path | None = None) -> DictConfig:
    """The same recipe, with choices of the command line in place of those in the recipe's body.

    Hydra lets a group that the command line names be changed by the body of the recipe, and merges mappings: without
    this, `score=taylor` would be lost where a recipe says `score: magnitude`. What holds for every part of a kind, such
    as a planner's constraints, stays.
    """
    config = config.copy()
    OmegaConf.set_struct(config, False)
    config.pop(CHOSEN.removesuffix("."), None)
    parsed = [each for each in OverridesParser.create().parse_overrides(list(overrides)) if not each.is_delete()]
    for each in parsed:
        key, value = each.key_or_group, each.value()
        if key not in GROUPS or (folder is not None and (folder / key / f"{value}.yaml").is_file()):
            continue
        node = OmegaConf.to_container(config)[key]  # pyright: ignore
        named = isinstance(node, str) or "name" in (node or {})  # else it is a user's file that shadows a part
        if isinstance(value, dict):
            config[key] = value
        elif isinstance(value, str) and named and value in parts(GROUPS[key]):
            config[key] = _common(key, node) | {"name": value}
    for each in parsed:
        if each.key_or_group.startswith(CHOSEN):
            path = each.key_or_group.removeprefix(CHOSEN)
            group = path.partition(".")[0]
            if isinstance(config[group], str):  # the recipe's body has a bare name
                config[group] = {"name": config[group]}
            OmegaConf.update(config, path, each.value(), force_add=True)
    return config


@contextmanager
def shadowing() -> Iterator[None]:
    """A user's file with the name of a part is no reason to warn: Hydra takes the part for its schema."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\s*'.*' is validated against ConfigStore schema")
        yield


def _common(key: str, node: Any) -> dict[str, Any]:
    """What a choice says that holds for every part of its kind."""
    known = [each.name for each in fields(COMMON[key]) if each.metadata] if key in COMMON else []  # pyright: ignore
    kept = {name: node[name] for name in known if isinstance(node, dict) and name in node}
    kept.pop("gates", None)  # they stand in place of a check set
    return kept
