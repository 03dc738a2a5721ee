"""From a recipe's choices to objects, and what a recipe that nobody named may not do."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from simprune.cli.recipe.schema import Recipe, device
from simprune.core import registry
from simprune.core.batches import call
from simprune.core.names import resolve
from simprune.measures import Measure
from simprune.sources.data import Data, as_data
from simprune.trace.context import evaluation


def objects(recipe: Recipe, trusted: bool = True) -> tuple[Measure, nn.Module, Data]:
    """Build the recipe's measure, model (on its device) and data; ValueError when the data do not fit the model.

    Unless `trusted`, nothing is built by anything but simprune itself and torch's layers.
    """
    measure = build("measure", recipe.measure, trusted)
    shared = {"seed": recipe.seed, "tokenizer": _pretrained(recipe.model)}
    data = as_data(build("data", recipe.data, trusted, **shared), "data")
    model = model_of(recipe, trusted).to(device(recipe))
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
    return measure, model, data


def model_of(recipe: Recipe, trusted: bool = True) -> nn.Module:
    """The recipe's model; ValueError when its source gives something else."""
    model = build("model", recipe.model, trusted, seed=recipe.seed)
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    return model


def _pretrained(model: Any) -> str | None:
    """The name of a transformers model, whose tokenizer texts are split by."""
    return model.get("pretrained") if isinstance(model, Mapping) else None


# A recipe is code: the functions that it names are called. One that was found inside a bundle, and not named by the
# user, may only call these.
HARMLESS = ("simprune.sources", "simprune.zoo", "simprune.measures", "torch.nn", "torch.optim")


def build(kind: str, choice: Any, trusted: bool = True, **shared: Any) -> Any:
    """What a registered source or measure makes of its options; `shared` holds what it may also take, such as the seed.

    KeyError or ValueError, with what was probably meant, when the name is not known or does not take the options;
    ValueError when the recipe is not `trusted` and would call something else than simprune's sources, zoo and measures,
    or torch's layers.
    """
    if isinstance(choice, Mapping) and "_target_" in choice:
        raise ValueError(
            f"{kind}: _target_ is not read; write {kind}: {{name: function, function: package.module:function}}"
        )
    part, options = registry.read(kind, choice)
    if not trusted:
        if not _harmless(part.make.__module__):
            raise ValueError(_refusal(kind, f"{part.make.__module__}:{part.name}"))
        for name in _functions(options):
            if not _harmless(name.replace(":", ".")) or not _harmless(getattr(resolve(name), "__module__", "")):
                raise ValueError(_refusal(kind, name))
    return registry.bound(kind, choice, **shared)()


def _harmless(path: Any) -> bool:
    return f"{path}.".startswith(tuple(f"{prefix}." for prefix in HARMLESS))


def _functions(options: Any) -> Iterator[str]:
    """Every function that the options name, at any depth."""
    if isinstance(options, Mapping):
        for key, value in options.items():
            if key == "function" and isinstance(value, str):
                yield value
            else:
                yield from _functions(value)
    elif isinstance(options, list | tuple):
        for value in options:
            yield from _functions(value)


def _refusal(what: str, name: str) -> str:
    return (
        f"{what}: the bundle's recipe would call {name}, which is not simprune's own; "
        "if you trust it, name a recipe yourself: recipe=FOLDER/recipe.yaml"
    )
