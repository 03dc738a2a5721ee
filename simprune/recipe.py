"""Recipes: their schema, where the built-in ones live, and how one becomes checked settings and objects."""

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.utils import get_object, instantiate
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from torch import nn

from simprune import checks, measures, pipeline, recovery
from simprune.batches import call, evaluation
from simprune.names import did_you_mean, fit, importable, resolve
from simprune.planning.budget import Budget
from simprune.planning.choosers import chooser
from simprune.sources import Data, as_data
from simprune.structures import FINDERS

PACKAGE = Path(__file__).resolve().parent
VERSION_BASE = "1.3"

# ---- the schema: every key a recipe may have, and its type ----

FinetuneSettings = make_dataclass(  # the numbers that `finetune` takes, with its defaults
    "FinetuneSettings",
    [
        (name, type(parameter.default), parameter.default)
        for name, parameter in inspect.signature(recovery.finetune).parameters.items()
        if isinstance(parameter.default, int | float) and name != "seed"
    ],
)


@dataclass
class GateSettings:
    measure: str = MISSING
    limit: float = MISSING
    confidence: float = 0.95
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class CheckSettings:
    gates: list[GateSettings] = field(default_factory=list)


@dataclass
class PlannerSettings:
    name: str = MISSING
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class BudgetSettings:
    macs: float | None = None
    params: float | None = None
    bytes: float | None = None


@dataclass
class Recipe:
    model: Any = MISSING
    data: Any = MISSING
    measure: Any = MISSING
    planner: PlannerSettings = field(default_factory=PlannerSettings)
    structures: list[str] = field(default_factory=list)
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    reconstruct: str = MISSING
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)  # pyright: ignore[reportInvalidTypeForm]
    check: CheckSettings = field(default_factory=CheckSettings)
    control: bool = False
    seed: int = 0
    device: str = "auto"
    plan: str | None = None
    bundle: str | None = None


# ---- where configs are, and how Hydra is told ----


def builtin(folder: str) -> Path:
    """`conf` or `recipes`: beside the package in a checkout, inside it in a wheel."""
    checkout = (PACKAGE.parent / "pyproject.toml").is_file()
    return (PACKAGE.parent if checkout else PACKAGE) / folder


def options(folder: Path) -> dict[str, str]:
    """Names of the YAML files in a folder, each with its first comment line."""
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        found[path.stem] = first.removeprefix("#").strip() if first.startswith("#") else ""
    return found


def locate(recipe: str) -> tuple[Path, str]:
    """Folder and config name of a built-in recipe, or of a path to a recipe file; ValueError if there is none."""
    path = Path(recipe).expanduser()
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        if path.suffix != ".yaml":
            raise ValueError(f"a recipe file ends in .yaml; got {recipe}")
        if not path.is_file():
            near = did_you_mean(path.name, [other.name for other in path.parent.glob("*.yaml")])
            raise ValueError(f"no recipe file {recipe}" + (f"; {near}" if near.startswith("did") else ""))
        return path.resolve().parent, path.stem
    known = options(builtin("recipes"))
    if recipe not in known:
        own = f"; for your own file say recipe={recipe}.yaml" if Path(f"{recipe}.yaml").is_file() else ""
        raise ValueError(f"no recipe {recipe!r}; {did_you_mean(recipe, known)}{own}")
    return builtin("recipes"), recipe


class BuiltinConfigs(SearchPathPlugin):
    """Puts the built-in folders last, so that a user's folder of the same shape wins."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in ("conf", "recipes"):
            search_path.append(provider="simprune", path=f"file://{builtin(folder)}")


def _register() -> None:
    """The schema, and one option of the group `measure` for every measure there is: no file per measure."""
    Plugins.instance().register(BuiltinConfigs)
    store = ConfigStore.instance()
    store.store(name="recipe_schema", node=Recipe, provider="simprune")
    for name, kind in measures.classes().items():
        node = {"_target_": f"{kind.__module__}.{kind.__qualname__}"}
        for each in dataclasses.fields(kind):
            made = each.default_factory is not dataclasses.MISSING
            default = each.default_factory() if made else each.default  # pyright: ignore[reportCallIssue]
            node[each.name] = MISSING if default is dataclasses.MISSING else default
        store.store(group="measure", name=name, node=node, provider="simprune")


_register()


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Compose a recipe without a command line, for notebooks and tests.

    >>> load_recipe("digits", ["budget.macs=0.3", "measure=cka"]).budget.macs
    0.3
    """
    folder, name = locate(recipe)
    importable(folder)
    with initialize_config_dir(str(folder), version_base=VERSION_BASE):
        return compose(name, overrides=list(overrides))


# ---- from a composed recipe to settings and objects ----


def settings(config: DictConfig, command: str) -> Recipe:
    """The recipe as checked Python objects, before any model or data is touched.

    ValueError, KeyError or FileNotFoundError, in one line, for the first missing value, unknown id, value out of
    range or missing file.
    """
    merged = OmegaConf.merge(OmegaConf.structured(Recipe), config)
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise ValueError(f"{missing[0]} is missing: set it in the recipe or add {missing[0]}=...")
    OmegaConf.resolve(merged)
    recipe = OmegaConf.to_object(merged)
    assert isinstance(recipe, Recipe)
    if command in ("plan", "compress") and recipe.plan is None:
        Budget.of(dataclasses.asdict(recipe.budget))
        chooser(recipe.planner.name)
    if command == "validate" and recipe.bundle is None:
        raise ValueError("bundle is missing: add bundle=FOLDER, a folder that `simprune compress` wrote")
    if recipe.bundle is not None and not Path(recipe.bundle).is_dir():
        raise FileNotFoundError(f"no bundle folder {recipe.bundle}")
    if recipe.plan is not None and not Path(recipe.plan).is_file():
        raise FileNotFoundError(f"no plan file {recipe.plan}")
    for name in recipe.structures:
        if name not in FINDERS:
            raise ValueError(f"structures: unknown {name!r}; {did_you_mean(name, FINDERS)}")
    if not recipe.structures:
        raise ValueError(f"structures is empty; name some of: {', '.join(FINDERS)}")
    if recipe.reconstruct not in pipeline.RECONSTRUCTIONS:
        hint = did_you_mean(recipe.reconstruct, pipeline.RECONSTRUCTIONS)
        raise ValueError(f"reconstruct: unknown {recipe.reconstruct!r}; {hint}")
    if recipe.seed < 0:
        raise ValueError(f"seed must not be negative; got {recipe.seed}")
    gates(recipe)
    device(recipe)
    return recipe


def gates(recipe: Recipe) -> list[checks.Gate]:
    """The recipe's gates; ValueError when there is none, or as `Gate`."""
    if not recipe.check.gates:
        raise ValueError("check.gates is empty; give at least one gate, such as check=default")
    return [checks.Gate(**dataclasses.asdict(gate)) for gate in recipe.check.gates]


def device(recipe: Recipe) -> torch.device:
    """The device to run on; ValueError when this machine has no such device."""
    if recipe.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=recipe.device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # what torch raises differs by backend
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device {recipe.device!r} cannot be used: {reason}") from None


def finetuning(recipe: Recipe) -> dict[str, Any] | None:
    """Arguments of `finetune`, or None for no epochs."""
    return dataclasses.asdict(recipe.finetune) if recipe.finetune.epochs else None


def model_and_data(recipe: Recipe, trusted: bool = True) -> tuple[nn.Module, Data]:
    """Build the recipe's model, on its device, and its data; ValueError when one does not fit the other."""
    data = as_data(build(recipe.data, "data", trusted), "data")
    model = build(recipe.model, "model", trusted)
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module; got {type(model).__name__}: does it have a _target_?")
    model = model.to(device(recipe))
    batch = next(iter(data.calibration), None)
    if batch is None:
        raise ValueError("data: calibration has no batches; give at least one")
    try:
        with evaluation(model):
            call(model, batch)
    except Exception as error:  # the model is the user's and may raise anything
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"the model does not run on the first calibration batch: {type(error).__name__}: {reason}"
        ) from error
    return model, data


# A recipe is code: its targets are called. One that was found inside a bundle, and not named by the user, may only
# call these.
HARMLESS = ("simprune.sources", "simprune.zoo", "simprune.measures", "torch.nn", "torch.optim")


def build(node: Any, what: str, trusted: bool = True) -> Any:
    """Call the `_target_` of a recipe's node with its other keys.

    ValueError, with what was probably meant, when the target is not found or does not take the keys; ValueError when
    the recipe is not `trusted` and the target is not one of simprune's sources, zoo and measures, or torch's layers.
    """
    if not isinstance(node, Mapping) or "_target_" not in node:
        return node
    for name in _named(node):
        path = name.replace(":", ".")
        if not trusted and not path.startswith(tuple(f"{prefix}." for prefix in HARMLESS)):
            raise ValueError(_refusal(what, name))
        target = _find(path)
        if not trusted and not str(getattr(target, "__module__", "")).startswith(HARMLESS):
            raise ValueError(_refusal(what, name))
    if not node.get("_args_"):
        given = [key for key in node if not (key.startswith("_") and key.endswith("_"))]
        fit(_find(node["_target_"]), given, node["_target_"])
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        raise (error.__cause__ or error) from None


def _named(node: Any) -> Iterator[str]:
    """Everything that building this node would call: targets, also nested ones, and named functions."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key in ("_target_", "function") and isinstance(value, str):
                yield value
            else:
                yield from _named(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _named(value)


def _find(path: str) -> Any:
    try:
        return get_object(path)
    except Exception:  # Hydra raises whatever the import raises; `resolve` says it in one line
        module, _, name = path.rpartition(".")
        return resolve(f"{module}:{name}")


def _refusal(what: str, name: str) -> str:
    return (
        f"{what}: the bundle's recipe would call {name}, which is not simprune's own; "
        "if you trust it, name a recipe yourself: recipe=FOLDER/recipe.yaml"
    )


STANDALONE = ["recipe_schema", "run", "_self_"]  # defaults list of a resolved recipe, which needs no groups


def resolved(config: DictConfig) -> dict[str, Any]:
    """The recipe with nothing left to look up, itself a recipe: what is kept with the results."""
    merged = OmegaConf.merge(OmegaConf.structured(Recipe), config)
    content = OmegaConf.to_container(merged, resolve=True)
    assert isinstance(content, dict)
    return {"defaults": list(STANDALONE), **{str(key): value for key, value in content.items()}}


def register_bundle_recipe(folder: str) -> str:
    """Name under which Hydra finds the recipe inside a bundle; it may hold nothing but a recipe's keys."""
    path = Path(folder) / "recipe.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"no bundle in {folder}: it has no recipe.yaml")
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if not isinstance(content, dict) or content.pop("defaults", STANDALONE) != STANDALONE:
        raise ValueError(f"{path} is not the recipe of a bundle; name it yourself: recipe={path}")
    OmegaConf.merge(OmegaConf.structured(Recipe), content)
    ConfigStore.instance().store("bundle", {"defaults": STANDALONE, **content}, provider="simprune")
    return "bundle"


# ---- what Hydra and OmegaConf say, in one line ----


def explain(error: BaseException) -> str | None:
    """One line for an error in composing a recipe, with what was probably meant; None for any other error."""
    if isinstance(error, MissingConfigException):
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        what = f"{group} has no option {name!r}" if group else f"no recipe or config {name!r}"
        return f"{what}; {did_you_mean(name, error.options or [])}"
    if isinstance(error, OverrideParseException):
        hint = f"; did you mean recipe={error.override}?" if error.override in options(builtin("recipes")) else ""
        return f"cannot read {error.override!r}: expected key=value{hint}"
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark
        where = f"{mark.name}, line {mark.line + 1}: " if mark else ""
        return f"{where}not valid YAML: {error.problem}"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OmegaConfBaseException) and cause.full_key:
            if isinstance(cause, ConfigKeyError | ConfigAttributeError):
                return f"there is no key {cause.full_key!r}; {did_you_mean(str(cause.key), _siblings(cause))}"
            return f"{cause.full_key}: {str(cause).partition(chr(10))[0]}"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, HydraException | OmegaConfBaseException):
        return str(error).partition("\n")[0]
    return None


def _siblings(error: OmegaConfBaseException) -> list[str]:
    if dataclasses.is_dataclass(error.object_type):
        return [each.name for each in dataclasses.fields(error.object_type)]
    return [str(key) for key in error.parent_node or []]
