"""What a recipe may say: every key, its type, and what can be checked before any model or data is touched."""

import dataclasses
import inspect
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING, DictConfig, OmegaConf

from simprune import checks, measures
from simprune.checks import corruptions
from simprune.cli.recipe.budgets import SMALLEST, check_budget
from simprune.core import registry
from simprune.core.names import did_you_mean
from simprune.core.redundancy import STAND_INS
from simprune.planners.constraints import Constraints
from simprune.repair import training as recovery
from simprune.repair.reconstruct import Rules
from simprune.structures import check_structures
from simprune.tune.plan import CONSTRAINTS, check_numbers
from simprune.tune.smallest import Search

FinetuneSettings = make_dataclass(  # the numbers that `finetune` takes, with its defaults
    "FinetuneSettings",
    [
        (name, type(parameter.default), parameter.default)
        for name, parameter in inspect.signature(recovery.finetune).parameters.items()
        if isinstance(parameter.default, int | float) and name != "seed"
    ],
)


SearchSettings = make_dataclass(
    "SearchSettings", [(each.name, type(each.default), each.default) for each in dataclasses.fields(Search)]
)


@dataclass
class GateSettings:
    measure: str = MISSING
    limit: float = MISSING
    confidence: float = 0.95
    options: dict[str, Any] = field(default_factory=dict)
    inputs: str = corruptions.CLEAN


@dataclass
class CheckSettings:
    gates: list[GateSettings] = field(default_factory=list)
    correction: str = "holm"


@dataclass
class PrunedSettings:
    function: str | None = None
    weights: str | None = None


@dataclass
class PlannerSettings:
    name: str = MISSING
    protect: list[str] = field(default_factory=list)
    round_to: int = 1
    min_width: int = 1
    max_share: float = 1.0
    blocks: int | None = None
    finalists: int = 0
    batch_size: int | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """What `simprune.plan` takes: what was set, and the planner's own options."""
        default = PlannerSettings(name=self.name)
        given = {key: value for key, value in vars(self).items() if key not in ("name", "options")}
        own = {key: value for key, value in self.options.items() if value is not None}
        return {key: value for key, value in given.items() if value != getattr(default, key)} | own


@dataclass
class AnalysisSettings:
    measures: list[str] = field(default_factory=list)
    chance: int = 20
    bootstrap: int = 50
    inputs: int = 384
    figures: bool = True


@dataclass
class Recipe:
    model: Any = MISSING
    data: Any = MISSING
    measure: Any = MISSING
    planner: PlannerSettings = field(default_factory=PlannerSettings)
    structures: list[str] = field(default_factory=list)
    budget: Any = None
    reconstruct: Any = MISSING
    trials: list[float] = field(default_factory=list)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)  # pyright: ignore[reportInvalidTypeForm]
    check: CheckSettings = field(default_factory=CheckSettings)
    control: int = 0
    seed: int = 0
    device: str = "auto"
    plan: str | None = None
    bundle: str | None = None
    pruned: PrunedSettings = field(default_factory=PrunedSettings)
    junit: str | None = None
    score: str = "second_order"
    block_score: Any = "similarity"
    replace: str = "identity"
    analysis: AnalysisSettings = field(default_factory=AnalysisSettings)
    other: str | None = None
    search: SearchSettings = field(default_factory=SearchSettings)  # pyright: ignore[reportInvalidTypeForm]
    resume: str | None = None
    objective: str | None = None


def typed(config: DictConfig) -> DictConfig:
    """A composed recipe as the schema has it: without keys of its own, which `+key=value` could have added."""
    content = OmegaConf.to_container(config)
    merged = OmegaConf.merge(OmegaConf.structured(Recipe), content)
    assert isinstance(merged, DictConfig)
    return merged


def settings(config: DictConfig, command: str) -> Recipe:
    """The recipe as checked Python objects, before any model or data is touched.

    ValueError, KeyError or FileNotFoundError, in one line, for the first missing value, unknown id, value out of
    range or missing file.
    """
    merged = typed(config)
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise ValueError(f"{missing[0]} is missing: set it in the recipe or add {missing[0]}=...")
    OmegaConf.resolve(merged)
    recipe = OmegaConf.to_object(merged)
    assert isinstance(recipe, Recipe)
    if command in ("plan", "compress") and recipe.plan is None:
        if recipe.budget is not None or recipe.planner.options.get("threshold") is None:
            check_budget(recipe.budget, command)
        Constraints(**{key: getattr(recipe.planner, key) for key in CONSTRAINTS})
        registry.read("planner", {"name": recipe.planner.name, **recipe.planner.options})
        check_numbers(recipe.planner.blocks, recipe.planner.finalists)
    if command == "validate" and (recipe.bundle is None) == (recipe.pruned.function is None):
        what = "bundle is missing" if recipe.bundle is None else "bundle and pruned.function are both given"
        raise ValueError(
            f"{what}: add either bundle=FOLDER, a folder that `simprune compress` wrote, or "
            "pruned.function=package.module:function and pruned.weights=FILE.safetensors"
        )
    if recipe.bundle is not None and not Path(recipe.bundle).is_dir():
        raise FileNotFoundError(f"no bundle folder {recipe.bundle}")
    if recipe.plan is not None and not Path(recipe.plan).is_file():
        raise FileNotFoundError(f"no plan file {recipe.plan}")
    Search(**dataclasses.asdict(recipe.search))
    if recipe.resume is not None and command != "analyze" and recipe.budget != SMALLEST:
        raise ValueError("resume goes on with a search: add budget=smallest, or leave resume out")
    registry.read("score", recipe.score)
    registry.read("block_score", recipe.block_score)
    if recipe.replace not in STAND_INS:
        raise ValueError(f"replace: unknown {recipe.replace!r}; {did_you_mean(recipe.replace, STAND_INS)}")
    wanted = recipe.analysis
    for name in wanted.measures:
        if name not in measures.names():
            raise ValueError(f"analysis.measures: unknown {name!r}; {did_you_mean(name, measures.names())}")
    if wanted.chance < 0 or wanted.bootstrap < 0:
        raise ValueError(f"analysis: expected chance, bootstrap >= 0; got {wanted.chance}, {wanted.bootstrap}")
    if wanted.inputs < 32:
        raise ValueError(
            f"analysis.inputs, from which chance and intervals are drawn: at least 32; got {wanted.inputs}"
        )
    check_structures(list(recipe.structures))
    if any(not 0 < share < 1 for share in recipe.trials):
        raise ValueError(f"trials: shares must lie between 0 and 1; got {recipe.trials}")
    Rules.of(recipe.reconstruct)
    for name in ("seed", "control"):
        if getattr(recipe, name) < 0:
            raise ValueError(f"{name} must not be negative; got {getattr(recipe, name)}")
    tune = recipe.finetune
    if tune.epochs < 0 or tune.lr <= 0 or not 0 <= tune.distill <= 1 or tune.temperature <= 0:
        raise ValueError(
            "finetune: expected epochs >= 0, lr > 0, distill in [0, 1] and temperature > 0; got "
            + ", ".join(f"{key}={value}" for key, value in dataclasses.asdict(tune).items())
        )
    gates(recipe)
    device(recipe)
    return recipe


def gates(recipe: Recipe) -> list[checks.Gate]:
    """The recipe's gates; ValueError when there is none, or as `Gate`."""
    if not recipe.check.gates:
        raise ValueError("check.gates is empty; give at least one gate, such as check=default")
    if recipe.check.correction not in checks.CORRECTIONS:
        hint = did_you_mean(recipe.check.correction, checks.CORRECTIONS)
        raise ValueError(f"check.correction: unknown {recipe.check.correction!r}; {hint}")
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
