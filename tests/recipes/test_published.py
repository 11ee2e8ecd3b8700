"""Recipes hold what their sources say, and say so where they took something of their own."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fastgrpo.algorithm import Algorithm
from fastgrpo.config import Config, flatten
from fastgrpo.data import load_problems
from fastgrpo.recipe import Recipe, find_recipe, load_recipe, recipe_names
from tests.recipes.page import PAGE, algorithm_value, filled, shown_recipes, verifier_of
from tests.recipes.published import HOW_IT_IS_RUN, Published, System, agrees, published

SYSTEMS = published()
DAPO_DATA = Path(__file__).parents[3] / "shared" / "data" / "train" / "dapo_math_17k_original.parquet"
NAMES = sorted(SYSTEMS)
WITHOUT_A_SOURCE = {"quickstart"}
"""Recipes that reproduce nobody's run."""


def recipe(name: str) -> Recipe:
    return load_recipe(find_recipe(name))


def differences(wanted: dict[str, Published], value_of: Any) -> list[str]:
    found = {name: value_of(name) for name in wanted}
    return [
        f"{name}: {constant.wanted!r} by {constant.source}, the recipe has {found[name]!r}"
        for name, constant in wanted.items()
        if not agrees(constant.wanted, found[name])
    ]


def test_every_recipe_that_reproduces_a_run_has_its_table_and_every_table_its_recipe() -> None:
    assert set(recipe_names()) - WITHOUT_A_SOURCE == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_settings_are_the_published_ones(name: str) -> None:
    settings = flatten(recipe(name).config)
    assert differences(dict(SYSTEMS[name].settings), settings.__getitem__) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_algorithm_is_the_published_one(name: str) -> None:
    described = recipe(name).algorithm.describe()
    assert differences(dict(SYSTEMS[name].algorithm), lambda path: algorithm_value(described, path)) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_verifier_is_the_published_one(name: str) -> None:
    assert verifier_of(name) == SYSTEMS[name].verifier.wanted


@pytest.mark.parametrize("name", NAMES)
def test_a_setting_that_no_source_gives_is_named_with_the_reason_for_ours(name: str) -> None:
    system, defaults = SYSTEMS[name], flatten(Config())
    told = system.settings.keys() | system.ours.keys() | HOW_IT_IS_RUN.keys()
    settings = flatten(recipe(name).config)
    assert [f"{k} = {v!r}" for k, v in settings.items() if v != defaults[k] and k not in told] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_part_that_is_not_plain_grpo_is_published_or_named_as_ours(name: str) -> None:
    system, plain = SYSTEMS[name], Algorithm().describe()
    told = {path.split(".")[0] for path in (*system.algorithm, *system.ours)}
    described = recipe(name).algorithm.describe()
    assert [f"{k} = {v!r}" for k, v in described.items() if v != plain[k] and k not in told] == []


@pytest.mark.parametrize("name", [n for n in NAMES if SYSTEMS[n].fidelity])
def test_fidelity_verl_does_what_the_released_code_does(name: str) -> None:
    settings = flatten(recipe(name).with_fidelity().config)
    assert differences(dict(SYSTEMS[name].fidelity), settings.__getitem__) == []


@pytest.mark.parametrize("name", [n for n in NAMES if SYSTEMS[n].fidelity])
def test_fidelity_verl_changes_nothing_that_the_table_does_not_name(name: str) -> None:
    plain, as_run = flatten(recipe(name).config), flatten(recipe(name).with_fidelity().config)
    changed = {k for k in plain if plain[k] != as_run[k]}
    assert changed <= SYSTEMS[name].fidelity.keys() | {"fidelity"}


def test_the_prompts_of_dapo_are_those_of_its_data_set_but_for_white_space() -> None:
    if not DAPO_DATA.exists():
        pytest.skip(f"needs {DAPO_DATA}")
    data = recipe("dapo_qwen2_5_32b").config.data
    rows = pq.read_table(DAPO_DATA, columns=["prompt"])["prompt"].to_pylist()
    theirs = {" ".join(row[0]["content"].split()) for row in rows}
    ours = {" ".join(p.text.split()) for p in load_problems(str(DAPO_DATA), data.suffix, data.template)}
    assert len(rows) == 17_917 and ours == theirs


@pytest.mark.parametrize("percent", [50, 25])
def test_the_prompts_of_questa_are_those_of_its_script_to_the_letter(percent: int, tmp_path: Path) -> None:
    """What AReaL/datasets/add_prefix.py does with a row, said anew: text after the last </think>, cut by characters."""
    loaded = recipe("questa_nemotron_1_5b")
    data, statement = replace(loaded.config.data, hint_percent=percent), loaded.algorithm.problem_text
    assert statement is not None
    solution = "\n\nWe add both numbers, carry the one, and obtain 42 at last.\n"
    generations = {
        "What is 17 + 25?": f"<think>\nHm. </think> No.\n</think>{solution}",
        "And 25 + 17?": f'"<think>\nHm.\n</think>{solution}"',
        "And briefly?": "<think>\nHm.\n</think>42",
        "And of what has no answer in its solution?": "<think>\n42\n</think>Who knows.",
    }
    rows = [{"problem": p, "generation": g, "answer": "42"} for p, g in generations.items()]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    hint = solution[: int(len(solution) * percent / 100)]
    made = load_problems(str(file), data.suffix, data.template, statement=lambda problem: statement(problem, data))
    assert [p.text for p in made] == [
        f"What is 17 + 25?\n\n## Hint.{hint}",
        f"And 25 + 17?\n\n## Hint.{hint}",
        "And briefly?\n\n",
    ]


def test_the_two_justrl_runs_differ_in_the_model_and_in_the_length_of_the_run_alone() -> None:
    one, other = recipe("justrl_deepseek_1_5b"), recipe("justrl_nemotron_1_5b")
    mine, theirs = flatten(one.config), flatten(other.config)
    assert {k for k in mine if mine[k] != theirs[k]} <= {"name", "model.path", "steps"}
    assert one.algorithm == other.algorithm
    assert one.fidelity == other.fidelity
    assert verifier_of("justrl_deepseek_1_5b") == verifier_of("justrl_nemotron_1_5b")


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("justrl_ablation")])
def test_an_ablation_of_justrl_changes_no_other_setting(name: str) -> None:
    base, ablation = flatten(recipe("justrl_deepseek_1_5b").config), flatten(recipe(name).config)
    assert {k for k in base if base[k] != ablation[k]} <= {"name", "steps"}


@pytest.mark.parametrize("name", [n for n in NAMES if n.endswith("_format_reward")])
def test_a_format_reward_changes_rewards_and_verifier_alone(name: str) -> None:
    base, variant = (flatten(recipe(n).config) for n in (name.removesuffix("_format_reward"), name))
    changed = {k for k in base if base[k] != variant[k]}
    assert changed == {"name", "reward.wrong", "reward.unformatted"}


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_named_as_its_recipe(name: str) -> None:
    assert recipe(name).config.name == name


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_whose_run_it_is_and_what_that_cost(name: str) -> None:
    loaded = recipe(name)
    assert loaded.source and loaded.cost
    assert "\n" not in loaded.source + loaded.cost


@pytest.mark.parametrize("name", NAMES)
def test_every_constant_names_a_setting_that_exists_and_a_source(name: str) -> None:
    system: System = SYSTEMS[name]
    settings, parts = flatten(Config()).keys(), Algorithm().describe().keys()
    assert system.settings.keys() <= settings
    assert {path.split(".")[0] for path in system.algorithm} <= parts
    assert system.ours.keys() <= settings | parts
    assert all(c.source for c in (*system.settings.values(), *system.algorithm.values(), system.verifier))
    assert not system.settings.keys() & system.ours.keys(), "both published and ours"


def test_a_departure_without_its_reason_is_refused() -> None:
    with pytest.raises(ValueError, match="reason"):
        Published(8192, "a script", ours=3072)


def test_numbers_agree_to_nine_digits_and_a_truth_value_is_no_number() -> None:
    assert agrees(1e-6, 1e-6 * (1 + 1e-12)) and not agrees(1e-6, 1.0001e-6)
    assert agrees([1, 2], [1, 2]) and not agrees([1, 2], [2, 1])
    assert not agrees(True, 1) and not agrees(0, False)


def test_the_fidelity_page_shows_every_recipe_as_it_is() -> None:
    page = PAGE.read_text()
    alike = {n for n in NAMES if n.endswith("_format_reward")}  # of which the page shows one
    assert set(NAMES) - alike <= shown_recipes(page) and alike & shown_recipes(page)
    assert page == filled(page), "run `python -m tests.recipes.page`"


def test_a_value_inside_an_algorithm_is_found_by_its_path() -> None:
    described = {"shaping": [{"is": "Other"}, {"is": "Cycled", "on_steps": 100}], "reset": {"is": "Reset", "every": 3}}
    assert algorithm_value(described, "shaping.Cycled.on_steps") == 100
    assert algorithm_value(described, "reset.every") == 3
    assert algorithm_value(described, "shaping.Absent.on_steps") is None
