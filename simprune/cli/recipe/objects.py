"""From a recipe's choices to objects, and the limits of a recipe that the user did not name."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from simprune.cli.recipe.bundled import check_harmless, check_modest
from simprune.cli.recipe.schema import device
from simprune.core import registry
from simprune.core.peekable import Peekable
from simprune.core.pretrained import located
from simprune.measures import Measure
from simprune.settings import Recipe
from simprune.sources.data import Data, as_data
from simprune.trace.first_run import check_runs


def objects(recipe: Recipe, trusted: bool = True) -> tuple[Measure, nn.Module, Data]:
    """Build the recipe's measure, model (on its device) and data; ValueError when the data do not fit the model.

    Unless `trusted`, nothing but simprune's own sources, its zoo and torch's layers builds anything.
    """
    measure = build("measure", recipe.measure, trusted)
    shared = {"seed": recipe.seed, "tokenizer": source_of(recipe)}  # texts are split by the tokenizer of the model
    data = as_data(build("data", recipe.data, trusted, **shared), "data")
    model = model_of(recipe, trusted).to(device(recipe))
    check_runs(model, Peekable(data.calibration, "calibration").first, "calibration")
    return measure, model, data


def source_of(recipe: Recipe) -> str | None:
    """The name, folder or GGUF file that a model of transformers comes from; None for other models."""
    named = recipe.model if isinstance(recipe.model, Mapping) else {}
    pretrained = named.get("pretrained")
    return None if pretrained is None else located(str(pretrained), named.get("gguf_file"))


def model_of(recipe: Recipe, trusted: bool = True) -> nn.Module:
    """The recipe's model; ValueError when its source returns something else."""
    model = build("model", recipe.model, trusted, seed=recipe.seed)
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    return model


def build(kind: str, choice: Any, trusted: bool = True, **shared: Any) -> Any:
    """The object that a registered source or measure builds from a choice.

    Args:
        kind: of the part: "model", "data" or "measure".
        choice: a name, or a mapping with `name` and options.
        trusted: whether the user named the recipe; otherwise see `simprune.cli.recipe.bundled`.
        shared: options for every part that takes them, such as the seed.

    Raises:
        KeyError: for an unknown name.
        ValueError: for options that the part does not take, and for a call of something else in an untrusted recipe.
    """
    if isinstance(choice, Mapping) and "_target_" in choice:
        raise ValueError(
            f"{kind}: _target_ is not read; write {kind}: {{name: function, function: package.module:function}}"
        )
    registry.read(kind, choice)
    if not trusted:
        check_harmless(kind, choice)
        if kind == "model":
            check_modest(choice)
    return registry.bound(kind, choice, **shared)()
