"""Recipes have the values of their sources, and name each value that is their own."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fastgrpo.config import Config
from fastgrpo.data import load_problems
from fastgrpo.recipe import Recipe, recipe_names
from tests.recipes.published import Constant, Range, agrees
from tests.recipes.recipe_values import shipped, value_at, values_of
from tests.recipes.sources import RUNS
from tests.recipes.sources.simplerl_zoo import WITH_FORMAT_REWARD

ROOT = Path(__file__).parents[2]
DAPO_DATA = ROOT.parent / "shared" / "data" / "train" / "dapo_math_17k_original.parquet"
NAMES = sorted(RUNS)
NAMES_WITH_FIDELITY = [name for name in NAMES if RUNS[name].fidelity]
WITHOUT_A_SOURCE = {"quickstart", "smollm2_gsm8k", "smollm2_word_problems"}
"""Recipes that reproduce nobody's run."""
PLAIN = Recipe(Path(), Config(), reward="")
HOW_IT_IS_RUN = {
    "name": "the run folder",
    "fidelity": "set by --fidelity itself",
    "rollout.engine": "what samples, not what is sampled",
    "rollout.tensor_parallel": "how weights lie on GPUs, not what they are",
    "model.family": "architecture of the tiny model of --shrink",
    "model.activation_checkpointing": "memory for time, the same gradient",
    "optimizer.reduce_every_microbatch": "memory for communication, the same gradient",
    "optimizer.tokens_per_microbatch": "how responses are packed, the same gradient",
    "reward.timeout_s": "how long a verdict may take",
    "evaluation.every_steps": "when accuracy is measured in training",
    "evaluation.samples_per_prompt": "how accuracy is measured in training",
    "evaluation.temperature": "how accuracy is measured in training",
    "checkpoint.every_steps": "when weights are kept",
}
"""Settings that change nothing of what is learned: a recipe may set them without a word on the page."""


def differences(wanted: Mapping[str, Constant], values: Mapping[str, Any]) -> list[str]:
    """What a recipe has and its sources do not say."""
    found = {path: value_at(values, path) for path in wanted}
    return [
        f"{path}: {constant.wanted!r} by {constant.source}, the recipe has {found[path]!r}"
        for path, constant in wanted.items()
        if not agrees(constant.wanted, found[path])
    ]


def changed(one: Recipe, other: Recipe) -> set[str]:
    """Paths at which two recipes have different values."""
    before, after = values_of(one), values_of(other)
    return {path for path in before if before[path] != after[path]}


def test_every_recipe_that_reproduces_a_run_has_its_source_and_every_source_its_recipe() -> None:
    assert set(recipe_names()) - WITHOUT_A_SOURCE == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_has_the_published_values(name: str) -> None:
    assert differences(RUNS[name].constants, values_of(shipped(name))) == []


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_a_default_is_published_or_named_as_our_choice(name: str) -> None:
    told = {
        ".".join(path.split(".")[:2]) for path in (*RUNS[name].constants, *RUNS[name].chosen)
    } | HOW_IT_IS_RUN.keys()
    values = values_of(shipped(name))
    assert [f"{path} = {values[path]!r}" for path in changed(shipped(name), PLAIN) - told] == []


@pytest.mark.parametrize("name", NAMES_WITH_FIDELITY)
def test_fidelity_verl_does_what_the_released_code_does_and_nothing_else(name: str) -> None:
    as_run = shipped(name).with_fidelity()
    assert differences(RUNS[name].fidelity, values_of(as_run)) == []
    assert changed(shipped(name), as_run) == RUNS[name].fidelity.keys() | {"fidelity"}


def test_the_prompts_of_dapo_are_those_of_its_data_set_but_for_white_space() -> None:
    if not DAPO_DATA.exists():
        pytest.skip(f"needs {DAPO_DATA}")
    data = shipped("dapo_qwen2_5_32b").config.data
    rows = pq.read_table(DAPO_DATA, columns=["prompt"])["prompt"].to_pylist()
    theirs = {" ".join(row[0]["content"].split()) for row in rows}
    ours = {" ".join(p.text.split()) for p in load_problems(str(DAPO_DATA), data.suffix, data.template)}
    assert len(rows) == 17_917 and ours == theirs


@pytest.mark.parametrize("percent", [50, 25])
def test_the_prompts_of_questa_are_those_of_its_script_to_the_letter(percent: int, tmp_path: Path) -> None:
    """What AReaL/datasets/add_prefix.py does with a row, said anew: text after the last </think>, cut by characters."""
    loaded = shipped("questa_nemotron_1_5b")
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
    one, other = shipped("justrl_deepseek_1_5b"), shipped("justrl_nemotron_1_5b")
    assert changed(one, other) == {"name", "model.path", "steps"}
    assert one.fidelity == other.fidelity


@pytest.mark.parametrize("name", [name for name in NAMES if RUNS[name].base == "justrl_deepseek_1_5b"])
def test_an_ablation_of_justrl_changes_penalty_and_verifier_alone(name: str) -> None:
    assert changed(shipped("justrl_deepseek_1_5b"), shipped(name)) <= {"name", "reward", "algorithm.shaping"}


@pytest.mark.parametrize("name", sorted(WITH_FORMAT_REWARD))
def test_a_format_reward_changes_rewards_and_verifier_alone(name: str) -> None:
    assert changed(shipped(RUNS[name].base), shipped(name)) == {"name", "reward", "reward.wrong", "reward.unformatted"}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_in_a_line_each_whose_run_it_is_and_what_that_cost(name: str) -> None:
    source, cost = shipped(name).source, shipped(name).cost
    assert source and cost and "\n" not in source + cost


@pytest.mark.parametrize("name", NAMES)
def test_every_constant_has_a_source_and_every_path_exists(name: str) -> None:
    run, known = RUNS[name], values_of(PLAIN).keys()
    assert {path for path in run.constants if path not in known and path.split(".")[0] != "algorithm"} == set()
    assert run.chosen.keys() <= known and run.fidelity.keys() <= known
    assert all(constant.source for constant in (*run.constants.values(), *run.fidelity.values()))
    assert not run.constants.keys() & run.chosen.keys(), "both published and our choice"


def test_a_value_that_is_not_the_published_one_needs_its_reason() -> None:
    with pytest.raises(ValueError, match="say why"):
        Constant(8192, "a script", ours=3072)
    with pytest.raises(ValueError, match="say why"):
        Constant(Range(200, 500), "a blog")


def test_numbers_agree_to_nine_digits_and_a_truth_value_is_no_number() -> None:
    assert agrees(1e-6, 1e-6 * (1 + 1e-12)) and not agrees(1e-6, 1.0001e-6)
    assert agrees([1, 2], [1, 2]) and not agrees([1, 2], [2, 1])
    assert not agrees(True, 1) and not agrees(0, False)
    assert agrees(Range(200, 500), 200) and not agrees(Range(200, 500), 501)


def test_a_value_inside_an_algorithm_is_found_by_its_path() -> None:
    values = {"algorithm.shaping": [{"is": "Other"}, {"is": "Cycled", "on_steps": 100}],
              "algorithm.reference_reset": {"is": "Reset", "every": 3}, "steps": 5}  # fmt: skip
    assert value_at(values, "algorithm.shaping.Cycled.on_steps") == 100
    assert value_at(values, "algorithm.reference_reset.every") == 3
    assert value_at(values, "algorithm.shaping.Absent.on_steps") is None
    assert value_at(values, "steps") == 5
    with pytest.raises(KeyError):
        value_at(values, "algorithm.shapping.Cycled.on_steps")
