"""Every recipe in small: three steps on a CPU of a random model of its architecture, by its own verifier."""

import math
from pathlib import Path

import pytest

from fastgrpo.recipe import find_recipe, load_recipe, recipe_names
from tests.recipes.shrunk import run_shrunk
from tests.recipes.test_published import WITHOUT_A_SOURCE

ROOT = Path(__file__).parents[2]
ONE_OF_EACH = [
    "justrl_deepseek_1_5b", "simplerl_zoo_llama_3_1_8b", "simplerl_zoo_mistral_7b_format_reward", "prorl_v2_1_5b",
    "questa_nemotron_1_5b", "dapo_qwen2_5_32b",
]  # fmt: skip
RECIPES = [n for n in recipe_names() if n not in WITHOUT_A_SOURCE]


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in ONE_OF_EACH else pytest.mark.slow) for n in RECIPES])
def test_a_recipe_runs_three_steps_in_small(name, tmp_path):
    records = run_shrunk(name, tmp_path)
    recipe = load_recipe(find_recipe(name))
    last = max(3, len(recipe.algorithm.phases) + 1)
    assert [r["step"] for r in records] == list(range(1, last + 1))
    for r in records:
        assert math.isfinite(r["grad_norm"]) and r["grad_norm"] > 0 and r["skipped_updates"] == 0
        assert r["verifier_failures"] == 0
        assert abs(r["rollout_kl"]) < 1e-5  # the sampler reads the same prompt and means the same temperature
        assert ("reference_kl" in r) == (recipe.config.objective.kl_coef > 0)
    assert any(r["reward_std"] > 0 for r in records)


@pytest.mark.parametrize("given", ["simplerl_zoo_qwen2_5_7b", "recipes/simplerl_zoo/qwen2_5_7b.py", "brorl_1_5b.py"])
def test_a_shipped_recipe_is_found_from_anywhere_by_its_name_and_by_its_path(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(find_recipe(given))
    assert recipe.name == recipe.config.name and find_recipe(recipe.name) == recipe.path


def test_a_path_that_is_not_there_is_not_taken_for_a_shipped_recipe_of_that_name(tmp_path):
    with pytest.raises(ValueError, match="no recipe"):
        find_recipe(str(tmp_path / "quickstart.py"))


def test_what_recipes_share_is_no_recipe():
    assert not [n for n in recipe_names() if "shared" in n or "__init__" in n]


def test_recipes_say_whose_they_are_and_what_they_cost():
    for name in recipe_names():
        recipe = load_recipe(find_recipe(name))
        assert recipe.about and recipe.source and recipe.cost, name
        assert recipe.config.name == name


def test_a_recipes_verifier_is_loaded_without_the_recipe():
    """Its processes need little memory: no torch."""
    assert load_recipe(find_recipe("prorl_v2_1_5b")).reward == "fastgrpo.rewards.prime_union:prime_union"


def test_the_recipe_of_the_docs_runs(tmp_path):
    page = (ROOT / "docs" / "recipes.md").read_text()
    recipe = tmp_path / "mine.py"
    recipe.write_text(page.split("```python\n")[1].split("```")[0])
    assert len(run_shrunk(str(recipe), tmp_path)) == 3


def test_a_verifier_may_be_named_and_ones_own_comes_with_its_file(tmp_path):
    head = "from fastgrpo.config import Config\nconfig = Config(name='mine')\n"
    named, own = tmp_path / "named.py", tmp_path / "own.py"
    named.write_text(head + "reward = 'my_verifier:judge'\n")
    own.write_text(head + "from fractions import Fraction\ndef reward(response, answer): return False\n")
    assert load_recipe(named).reward == "my_verifier:judge"
    assert load_recipe(own).reward == f"{own}:reward"
