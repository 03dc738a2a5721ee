"""Recipes: what a run is made of. With the command line, all that knows Hydra."""

from simprune.recipe.budgets import rewritten, several
from simprune.recipe.explain import explain
from simprune.recipe.objects import build, objects
from simprune.recipe.places import (
    VERSION_BASE,
    builtin,
    load_recipe,
    locate,
    options,
    register_bundle_recipe,
    resolved,
)
from simprune.recipe.schema import Recipe, device, finetuning, gates, settings

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
