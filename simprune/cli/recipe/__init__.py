"""Recipes: their schema, how Hydra composes them, and the objects that they name."""
