"""Choices in recipes: Hydra's groups, fed from the registry, and overrides of them on the command line."""

import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from simprune.core.options import Chosen, default_of, listed
from simprune.core.registry import parts
from simprune.settings import Check, Finetune, Planner, recipe_table

# Keys of a recipe that are groups, and the kinds of their parts; not a list of parts, and not patterns of layer names.
GROUPS = {
    option.name: option.metadata["kind"]
    for option in recipe_table()
    if option.metadata["kind"] and option.name not in ("structures", "reconstruct")
}
COMMON: dict[str, type[Chosen]] = {"planner": Planner, "check": Check}
CHOSEN = "chosen."  # prefix of what Hydra would misread, on its way through Hydra
KEYS = tuple(option.name for option in recipe_table())
REPLACED = ("budget", "reconstruct")  # keys whose value another one replaces as a whole


BOTH = "check: expected a check set or a list of gates; got both; leave out name, or gates"


def store_groups() -> None:
    """One option of a group for every part there is, and the recipe `base` with the defaults: no file per part."""
    store = ConfigStore.instance()
    for key, kind in GROUPS.items():
        for name in parts(kind):
            store.store(group=key, name=name, node={"name": name}, provider="simprune")
    store.store(group="finetune", name="default", node=Finetune().to_dict(), provider="simprune")
    store.store(group="finetune", name="none", node={"epochs": 0}, provider="simprune")
    chosen = {option.name: default_of(option) for option in recipe_table() if option.name in GROUPS}
    groups = [{key: name} for key, name in chosen.items() if isinstance(name, str)]
    defaults = ["recipe_schema", "run", *groups, {"finetune": "none"}, {"check": "default"}, "_self_"]
    store.store(name="base", node={"defaults": defaults}, provider="simprune")


def rewritten(
    overrides: Sequence[str], selectable: Collection[str] = (*GROUPS, "finetune"), shadowed: Collection[str] = ()
) -> list[str]:
    """Overrides with which a choice can get any option, and any budget can follow any other.

    Hydra refuses keys that are not there and choices that are no names, merges mappings with nothing but mappings, and
    takes every folder beside a recipe for a group. Options of choices, and keys with the name of such a folder,
    therefore go through it under the key `chosen`, from which `settled` takes them.

    Args:
        overrides: as typed.
        selectable: the groups that stand in the recipe's list of defaults. Choices of other groups are appended to it.
        shadowed: keys that are no groups, and that a folder in Hydra's search path has the name of.

    >>> rewritten(["budget=[0.9,0.5]", "budget.macs=0.3", "planner.round_to=8", "seed=1"])
    ['budget=null', 'budget=[0.9,0.5]', '++budget.macs=0.3', '++chosen.planner.round_to=8', 'seed=1']
    >>> rewritten(["bundle=folder", "check=strict"], selectable=[], shadowed=["bundle"])
    ['++chosen.bundle=folder', '+check=strict']
    """
    changed: list[str] = []
    for override in overrides:
        key, _, value = override.partition("=")
        head, dot, _ = key.partition(".")
        no_name = re.fullmatch(r"null|true|false|[-+.\d]+", value, re.IGNORECASE)
        if key == "finetune" and no_name:  # as in Python, a number is one of epochs
            changed.append(f"finetune.epochs={0 if value.lower() == 'null' else value}")
            continue
        if (dot and head in GROUPS) or head in shadowed or (key in GROUPS and no_name):
            changed.append(f"++{CHOSEN}{override}")
            continue
        if key in REPLACED:
            changed.append(f"{key}=null")
        if (dot and head in REPLACED) or (key in GROUPS and value.startswith("{")):
            changed.append(f"++{override}")
        else:
            append = key in (*GROUPS, "finetune") and key not in selectable
            changed.append(f"+{override}" if append else override)
    return changed


def as_typed(override: str) -> str:
    """A rewritten override as somebody typed it.

    >>> as_typed("++chosen.planner.round_to=8"), as_typed("++budget.macs=0.3")
    ('planner.round_to=8', 'budget.macs=0.3')
    """
    return override.lstrip("+").removeprefix(CHOSEN)


def settled(config: DictConfig, overrides: Sequence[str], folder: Path | None = None) -> DictConfig:
    """The same recipe, with choices of the command line instead of those in the recipe's body.

    Hydra lets the body of the recipe change a group that the command line names, and merges mappings: without this,
    `score=taylor` would be lost where a recipe says `score: magnitude`. Options of every part of a kind, such as a
    planner's constraints, stay. A list of gates stands in for a check set that the recipe builds on.

    Raises:
        ValueError: for a check set and gates that are both typed.
    """
    config = config.copy()
    OmegaConf.set_struct(config, False)
    config.pop(CHOSEN.removesuffix("."), None)
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    values = [(override.key_or_group, override.value()) for override in parsed if not override.is_delete()]
    for key, value in values:
        if key not in GROUPS or (folder is not None and (folder / key / f"{value}.yaml").is_file()):
            continue
        node = OmegaConf.to_container(config)[key]  # pyright: ignore
        named = isinstance(node, str) or "name" in (node or {})  # else it is a user's file that shadows a part
        if isinstance(value, dict):
            config[key] = value
        elif isinstance(value, str) and named and value in parts(GROUPS[key]):
            # options that hold for every part of the kind stay, but for gates, which stand in for a check set
            common = [option.name for option in listed(COMMON[key]) if option.name != "gates"] if key in COMMON else []
            stay = {name: node[name] for name in common if isinstance(node, dict) and name in node}
            config[key] = stay | {"name": value}
    for key, value in values:
        if key.startswith(CHOSEN):
            path = key.removeprefix(CHOSEN)
            group = path.partition(".")[0]
            if group in GROUPS and isinstance(config[group], str):  # the recipe's body has a bare name
                config[group] = {"name": config[group]}
            OmegaConf.update(config, path, value, force_add=True, merge="." in path)
    typed = {key for key, _ in values}
    if {"check", f"{CHOSEN}check.gates"} <= typed and config.check.get("gates") is not None:
        raise ValueError(BOTH)
    common = {"name", *(option.name for option in listed(Check))}
    if isinstance(config.check, DictConfig) and config.check.get("gates") is not None and common >= {*config.check}:
        config.check.pop("name", None)  # of the set that a recipe builds on, in place of which the gates are
    return config


@contextmanager
def shadowing() -> Iterator[None]:
    """No warning for a user's file with the name of a part, which Hydra takes for the file's schema."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\s*'.*' is validated against ConfigStore schema")
        yield
