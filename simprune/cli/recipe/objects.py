"""From a recipe's nodes to objects, and what a recipe that nobody named may not do."""

from collections.abc import Iterator, Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn

from simprune.cli.recipe.schema import Recipe, device
from simprune.core.batches import call
from simprune.core.names import fit, locate
from simprune.measures import Measure
from simprune.sources.data import Data, as_data
from simprune.trace.context import evaluation


def objects(recipe: Recipe, trusted: bool = True) -> tuple[Measure, nn.Module, Data]:
    """Build the recipe's measure, model (on its device) and data; ValueError when the data do not fit the model.

    Unless `trusted`, nothing is built by anything but simprune itself and torch's layers.
    """
    measure = build(recipe.measure, "measure", trusted)
    if not isinstance(measure, Measure):
        raise ValueError(f"measure must be a simprune.measures.Measure; got {type(measure).__name__}")
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
    return measure, model, data


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
        target = locate(path)
        if not trusted and not str(getattr(target, "__module__", "")).startswith(HARMLESS):
            raise ValueError(_refusal(what, name))
    if not node.get("_args_"):
        given = [key for key in node if not (key.startswith("_") and key.endswith("_"))]
        fit(locate(node["_target_"]), given, node["_target_"])
    failure: BaseException
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        failure = error.__cause__ or error
    raise failure  # what the target itself raised, without Hydra's words around it


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


def _refusal(what: str, name: str) -> str:
    return (
        f"{what}: the bundle's recipe would call {name}, which is not simprune's own; "
        "if you trust it, name a recipe yourself: recipe=FOLDER/recipe.yaml"
    )
