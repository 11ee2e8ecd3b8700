"""A checkpoint is asked in the words of its run where its owner says so, and told that there are such where not."""

import json
from pathlib import Path

import pytest

from fastgrpo.evaluation.as_trained import as_trained
from fastgrpo.evaluation.plan import make_plan
from fastgrpo.evaluation.settings import Settings


@pytest.fixture
def model(tmp_path) -> str:
    """A checkpoint of a run with a suffix of its own, and a benchmark beside it."""
    folder = tmp_path / "mine" / "checkpoints" / "step_000040" / "hf"
    folder.mkdir(parents=True)
    config = {"data.template": "", "data.suffix": " Go.", "data.chat_template": True}
    (tmp_path / "mine" / "run.json").write_text(json.dumps({"config": config, "reward": "my_verifier:judge"}))
    (tmp_path / "sums.jsonl").write_text('{"problem": "1+1?", "answer": "2"}\n')
    return str(folder)


def settings_for(model: str, **more) -> Settings:
    return Settings(model=model, benchmarks=(str(Path(model).parents[3] / "sums.jsonl"),), **more)


def test_words_and_verifier_are_those_of_the_run(model):
    settings = as_trained(settings_for(model, as_trained=True))
    protocol = make_plan(settings).benchmarks[0].protocol
    assert (protocol.template, protocol.chat_template) == ("{problem} Go.", True)
    assert settings.rule == "my_verifier:judge"


def test_what_is_given_goes_before_the_run(model):
    settings = as_trained(settings_for(model, as_trained=True, template="Q: {problem}", rule="other:rule"))
    protocol = make_plan(settings).benchmarks[0].protocol
    assert (protocol.template, protocol.chat_template, settings.rule) == ("Q: {problem}", False, "other:rule")


def test_special_tokens_are_left_out_where_the_run_left_them_out(model):
    assert as_trained(settings_for(model)).special_tokens
    run = Path(model).parents[2] / "run.json"
    facts = json.loads(run.read_text())
    facts["config"]["data.special_tokens"] = False
    run.write_text(json.dumps(facts))
    assert not as_trained(settings_for(model)).special_tokens


@pytest.mark.parametrize("content", ["[" * 200_000, "[]", '{"config": []}', "{"])
def test_a_broken_run_is_refused_in_words(model, content):
    (Path(model).parents[2] / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run\.json cannot be read"):
        as_trained(settings_for(model))


def test_a_checkpoint_that_is_asked_in_the_suites_words_is_told_so(model):
    assert any("--as_trained" in note for note in make_plan(settings_for(model)).notes)


def test_a_model_of_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is in no run folder"):
        as_trained(Settings(model=str(tmp_path), as_trained=True))


def test_an_evaluation_is_named_after_run_and_step(model):
    assert settings_for(model).folder_name == "mine-step_000040-justrl"
    assert Settings(model="runs/mine/base/model").folder_name == "mine-base-justrl"
    assert Settings(model="owner/name", suite="prorl").folder_name == "name-prorl"
