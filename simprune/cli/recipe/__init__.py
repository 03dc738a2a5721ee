"""Recipes: what a run is made of. With the command line, all that knows Hydra."""

from simprune.cli.recipe.budgets import rewritten, several
from simprune.cli.recipe.explain import explain
from simprune.cli.recipe.objects import build, objects
from simprune.cli.recipe.places import (
    VERSION_BASE,
    builtin,
    load_recipe,
    locate,
    options,
    register_bundle_recipe,
    resolved,
)
from simprune.cli.recipe.schema import Recipe, device, finetuning, gates, settings

__all__ = [
    "VERSION_BASE",
    "Recipe",
    "build",
    "builtin",
    "device",
    "explain",
    "finetuning",
    "gates",
    "load_recipe",
    "locate",
    "objects",
    "options",
    "register_bundle_recipe",
    "resolved",
    "rewritten",
    "settings",
    "several",
]
