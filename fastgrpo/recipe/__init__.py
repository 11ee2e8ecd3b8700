"""One Python file that says what a run is: how it is found, loaded, checked and made small."""

from fastgrpo.recipe.recipe import Recipe, find_recipe, load_recipe, recipe_names, shipped_recipes

__all__ = ["Recipe", "find_recipe", "load_recipe", "recipe_names", "shipped_recipes"]
