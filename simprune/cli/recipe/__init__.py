"""Recipes: what a run is made of. With the command line, all that knows Hydra."""

from simprune.cli.recipe.budgets import several
from simprune.cli.recipe.choices import GROUPS, rewritten, settled, shadowing
from simprune.cli.recipe.explain import explain
from simprune.cli.recipe.objects import build, model_of, objects
from simprune.cli.recipe.places import (
    VERSION_BASE,
    builtin,
    load_recipe,
    locate,
    options,
    register_bundle_recipe,
    resolved,
)
from simprune.cli.recipe.schema import Recipe, RecipeSchema, device, gates, settings

__all__ = [
    "GROUPS",
    "VERSION_BASE",
    "Recipe",
    "RecipeSchema",
    "build",
    "builtin",
    "device",
    "explain",
    "gates",
    "load_recipe",
    "locate",
    "model_of",
    "objects",
    "options",
    "register_bundle_recipe",
    "resolved",
    "rewritten",
    "settings",
    "settled",
    "several",
    "shadowing",
]
