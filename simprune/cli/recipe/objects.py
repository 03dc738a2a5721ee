"""From a recipe's choices to objects, and the limits of a recipe that the user did not name."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from simprune.cli.recipe.schema import device
from simprune.core import registry
from simprune.core.names import resolve
from simprune.core.peekable import Peekable
from simprune.core.pretrained import located
from simprune.measures import Measure
from simprune.settings import Recipe
from simprune.sources.data import Data, as_data
from simprune.trace.first_run import check_runs


def objects(recipe: Recipe, trusted: bool = True) -> tuple[Measure, nn.Module, Data]:
    """Build the recipe's measure, model (on its device) and data; ValueError when the data do not fit the model.

    Unless `trusted`, nothing is built by anything but simprune itself and torch's layers.
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


# A recipe is code: the functions that it names are called. A recipe inside a bundle, which the user did not name, may
# only call functions of these packages.
HARMLESS = ("simprune.sources.", "simprune.zoo.", "simprune.measures.", "torch.nn.", "torch.optim.")


def build(kind: str, choice: Any, trusted: bool = True, **shared: Any) -> Any:
    """The object that a registered source or measure builds from a choice.

    Args:
        kind: of the part: "model", "data" or "measure".
        choice: a name, or a mapping with `name` and options.
        trusted: whether the user named the recipe. Otherwise only simprune's sources, zoo and measures, and torch's
            layers are called.
        shared: options for every part that takes them, such as the seed.

    Raises:
        KeyError: for an unknown name.
        ValueError: for options that the part does not take, and for a call of something else in an untrusted recipe.
    """
    if isinstance(choice, Mapping) and "_target_" in choice:
        raise ValueError(
            f"{kind}: _target_ is not read; write {kind}: {{name: function, function: package.module:function}}"
        )
    part, options = registry.read(kind, choice)
    if not trusted:
        refused = [name for name in _functions(options) if not _harmless(name)]
        if not f"{part.make.__module__}.".startswith(HARMLESS):
            refused = [f"{part.make.__module__}:{part.name}"]
        if refused:
            raise ValueError(
                f"{kind}: the bundle's recipe would call {refused[0]}, which is not simprune's own; "
                "if you trust it, name a recipe yourself: recipe=FOLDER/recipe.yaml"
            )
    return registry.bound(kind, choice, **shared)()


def _harmless(name: str) -> bool:
    """Whether a function may be called: by its name, which is not imported otherwise, and by its own module."""
    named = f"{name.replace(':', '.')}.".startswith(HARMLESS)
    return named and f"{getattr(resolve(name), '__module__', '')}.".startswith(HARMLESS)


def _functions(options: Any) -> Iterator[str]:
    """Every function that the options name, at any depth."""
    if isinstance(options, Mapping):
        if isinstance(options.get("function"), str):
            yield options["function"]
        options = list(options.values())
    if isinstance(options, list | tuple):
        for value in options:
            yield from _functions(value)
