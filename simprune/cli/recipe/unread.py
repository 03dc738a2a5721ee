"""What was typed and a command does not read: refused in one line. A recipe's body may hold keys of all commands."""

from collections.abc import Iterator, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser

from simprune.cli.recipe.choices import GROUPS, as_typed
from simprune.cli.recipe.schema import several
from simprune.idle import OF_PLANNER, idle
from simprune.settings import READ_BY, Recipe, recipe_table


def refuse_unread(recipe: Recipe, command: str, overrides: Sequence[str]) -> None:
    """Raise ValueError for an override of a key that the command does not read, or that has no effect in this run.

    Args:
        recipe: as composed.
        command: its name.
        overrides: as Hydra got them.
    """
    read = {entry.name for entry in recipe_table(command)}
    without = without_effect(recipe, command)
    for key in _typed(overrides):
        head = key.partition(".")[0]
        if head not in read:
            readers = [name for name in READ_BY if head in {entry.name for entry in recipe_table(name)}]
            raise ValueError(f"{command} does not read {head}, which is for {', '.join(readers)}; leave it out")
        of_one_planner = head == "planner" and key.partition(".")[2] not in OF_PLANNER
        for name in ("planner.options",) if of_one_planner else (key, head):
            if name in without:
                raise ValueError(f"{key} has no effect: {without[name]}")


def without_effect(recipe: Recipe, command: str) -> dict[str, str]:
    """Keys of a recipe that a run does not use, and why."""
    if command == "analyze":  # which compares layers, whatever the structures are
        return {key: reason for key, reason in idle(recipe, "analyze").items() if key != "measure"}
    if command == "plan" and several(recipe.budget) is None:
        scoring, planning = idle(recipe, "analyze"), idle(recipe, "plan")
        reasons = {key: planning.get(key, reason) for key, reason in scoring.items() if not key.startswith("planner.")}
        if "reconstruct" not in planning:
            reasons.pop("reconstruct", None)
        alone = "it is for a frontier; add --frontier, or a list of budgets"
        return reasons | {"finetune": alone, "control": alone}
    if command == "plan":
        return idle(recipe, "frontier")
    if command == "compress":
        reasons = idle(recipe, "compress", recipe.plan is not None)
        return reasons | ({"to": "nothing is exported; add format"} if recipe.format is None else {})
    return {"pruned.weights": "the bundle has weights; leave out one of them"} if recipe.bundle is not None else {}


def _typed(overrides: Sequence[str]) -> Iterator[str]:
    """Dotted keys of overrides as somebody typed them; a choice of a part is its `name`."""
    for override in OverridesParser.create().parse_overrides([as_typed(text) for text in overrides]):
        key, value = override.key_or_group, override.value()
        if override.is_delete():
            continue
        if isinstance(value, dict) and key == "planner":
            yield from (f"{key}.{name}" for name in value)
        else:
            yield f"{key}.name" if key == "planner" and key in GROUPS else key
