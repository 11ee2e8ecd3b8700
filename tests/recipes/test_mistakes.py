"""What a recipe's author gets wrong is said in words, with the name of the function or the setting."""

import numpy as np
import pytest

from fastgrpo.algorithm import Algorithm
from fastgrpo.algorithm.scoring import RecipeError
from fastgrpo.algorithm.shaping import OverlongPenalty
from fastgrpo.recipe import load_recipe
from tests.recipes.shrunk import run_shrunk


def of_another_length(rewards, outcomes):
    return rewards + outcomes.lengths[1:]


def too_short(rewards, *_):
    return rewards[1:]


def not_finite(rewards, *_):
    return rewards * np.inf


def a_list(rewards, *_):
    return list(rewards)


@pytest.mark.parametrize("part", ["advantages", "shaping"])
@pytest.mark.parametrize(
    "function, complaint",
    [
        (of_another_length, "failed: ValueError"),
        (too_short, "got float32"),
        (not_finite, "not finite"),
        (a_list, "got list"),
    ],
)
def test_a_function_that_does_not_fit_is_named(part, function, complaint, tmp_path):
    broken = (function,) if part == "shaping" else function
    with pytest.raises(RecipeError, match=f"{function.__name__}, of the recipe's {part}.*{complaint}"):
        run_shrunk("justrl_deepseek_1_5b", tmp_path, **{part: broken})


@pytest.mark.parametrize(
    "broken, complaint",
    [
        ({"shaping": OverlongPenalty()}, "shaping must be a tuple"),
        ({"shaping": (OverlongPenalty,)}, "shaping must be a tuple"),
        ({"phases": ({},)}, "phases must be a tuple of Phase"),
        ({"advantages": "mean"}, "advantages must be a function"),
    ],
)
def test_a_part_of_another_kind_is_refused(broken, complaint):
    with pytest.raises(ValueError, match=complaint):
        Algorithm(**broken)


@pytest.mark.parametrize(
    "config, complaint",
    [
        ("steps=10.5", "--steps cannot be 10.5"),
        ("rollout=RolloutConfig(zero_signal_groups='replcae')", "--rollout.zero_signal_groups cannot be 'replcae'"),
        ("rollout={}", "rollout must be a RolloutConfig, got dict"),
    ],
)
def test_a_setting_of_another_type_is_refused_with_the_recipes_name(config, complaint, tmp_path):
    recipe = tmp_path / "mine.py"
    recipe.write_text(f"from fastgrpo.config import Config, RolloutConfig\nconfig = Config({config})\nreward = 'a:b'\n")
    with pytest.raises(ValueError, match=f"mine.py: {complaint}"):
        load_recipe(recipe)


def test_the_line_of_a_mistake_is_the_recipes(tmp_path):
    recipe = tmp_path / "mine.py"
    recipe.write_text("from fastgrpo.algorithm import Phase\n\n\nPhase(3, {'model.path': 'x'})\n")
    with pytest.raises(ValueError, match=r"line 4: ValueError: a phase cannot change model\.path"):
        load_recipe(recipe)
