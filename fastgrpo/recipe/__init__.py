"""One Python file that says what a run is: how it is found, loaded, checked, made small and asked for."""

from fastgrpo.recipe.find import find_recipe, recipe_folders, recipe_names
from fastgrpo.recipe.recipe import Recipe, load_recipe

__all__ = ["Recipe", "find_recipe", "load_recipe", "recipe_folders", "recipe_names"]
