"""Which run is asked about."""

import pytest

from fastgrpo.inspection.asked import asked_of, place_of, verifier_names
from fastgrpo.inspection.options import parse
from fastgrpo.inspection.other_verifiers import TRIED
from fastgrpo.rewards import SELF_TEST
from fastgrpo.rewards.pool.load import load_reward, locate_reward
from tests.conftest import TINY


def asked(*arguments: str):
    return asked_of(parse(arguments))


def test_without_a_recipe_all_is_the_defaults_but_for_model_data_and_what_is_given():
    found = asked("some/model", "~/data.jsonl", "--rollout.temperature", "0.8")
    assert found.config.model.path == "some/model" and found.config.data.train.endswith("/data.jsonl")
    assert not found.config.data.train.startswith("~") and found.config.rollout.temperature == 0.8
    assert found.recipe.reward_name == "strict_boxed" and found.recipe.demands_box()


def test_a_recipe_keeps_its_reward_unless_another_is_named():
    assert asked(str(TINY)).recipe.reward == f"{TINY}:reward"
    other = asked(str(TINY), "--reward", "simplerl_mix").recipe
    assert other.reward_name == "simplerl_mix" and other.demands_box() is False and other.prepare is not None


@pytest.mark.parametrize("name", verifier_names())
def test_every_shipped_verifier_is_found_by_its_name(name):
    reward = load_reward(*locate_reward(place_of(name)))
    assert reward.__name__ == name and reward("", SELF_TEST[0][1]) is not True


def test_the_verifiers_that_are_tried_are_shipped():
    assert set(TRIED) <= set(verifier_names())


@pytest.mark.parametrize("settings", [["--rollout.engine", "vllm", "--rollout.servers", "http://here:1"], []])
def test_the_built_in_engine_samples_in_this_process_whatever_the_run_has(settings):
    config = asked("justrl_deepseek_1_5b", "--rollout.tensor_parallel", "2", *settings).config
    assert config.rollout.engine == "builtin" and config.rollout.tensor_parallel == 1 and not config.rollout.servers


def test_responses_are_cut_early_unless_their_length_is_given():
    usual, given = asked("m", "d.jsonl"), asked("m", "d.jsonl", "--rollout.max_response_tokens=900")
    assert usual.config.rollout.max_response_tokens == 15360
    assert usual.sampled("cpu", 8).rollout.max_response_tokens == 192
    assert usual.sampled("cuda", 8).rollout.max_response_tokens == 2048
    assert given.sampled("cpu", 8).rollout.max_response_tokens == 900
    assert asked(str(TINY)).sampled("cpu", 6).rollout.max_response_tokens == 16


def test_a_recipe_is_called_as_a_command_line_calls_it():
    assert asked("quickstart").recipe.given_as == "quickstart"
    assert asked(str(TINY)).recipe.given_as == str(TINY)
