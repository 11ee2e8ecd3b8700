"""Runs and evaluations that start from broken models and strange data: exit code 2 in words, or a line about it."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastgrpo.evaluate import main as evaluate
from fastgrpo.train import main as start
from tests.conftest import TINY

USER_ERROR = 2


@pytest.fixture
def model(train):
    return train.folder / "base" / "model"


def template(model, text):
    (model / "chat_template.jinja").write_text(text)


def truncate(model):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def spoil(model):
    weights = load_file(model / "model.safetensors")
    next(iter(weights.values())).view(-1)[7] = torch.nan
    save_file(weights, model / "model.safetensors", {"format": "pt"})


BROKEN = {
    "a template that raises": (lambda m: template(m, "{{ raise_exception('no system') }}"), "TemplateError: no system"),
    "a template without end": (lambda m: template(m, "{{ 'a' * 10**10 }}"), "took more than 1,024 MiB"),
    "a template of nothing": (lambda m: template(m, "{{ messages["), "TemplateSyntaxError in line 1"),
    "garbage as tokenizer": (lambda m: (m / "tokenizer.json").write_text("[" * 200_000), "tokenizer.json is damaged"),
    "garbage as config": (lambda m: (m / "config.json").write_text("[" * 200_000), "the configuration of"),
    "truncated weights": (truncate, "model.safetensors is cut short or damaged"),
    "NaN in the weights": (spoil, "have NaN or infinity in"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_model_is_refused_in_words_by_train_and_evaluate(train, model, tmp_path, capfd, kind):
    spoil_it, says = BROKEN[kind]
    spoil_it(model)
    assert train() == USER_ERROR
    assert says in (err := capfd.readouterr().err) and "Traceback" not in err
    data = str(train.folder / "base" / "held_out.jsonl")
    how = ["--template", "{problem}", "--chat_template", "--samples", "1", "--max_response_tokens", "4"]
    assert evaluate([str(model), "--benchmarks", data, "--out", str(tmp_path / "out"), *how]) == USER_ERROR
    assert says in (err := capfd.readouterr().err) and "Traceback" not in err


def rows_of(train, answers):
    path = train.folder / "base" / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row, answer in zip(rows, answers, strict=False):
        row["reward_model"]["ground_truth"] = answer
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def strict(train, tmp_path):
    """Trains the tiny recipe for no step, with a verifier as its reward."""
    recipe = tmp_path / "strict.py"
    before, _, after = TINY.read_text().partition("def reward(")
    recipe.write_text(before + "reward = strict_boxed\n\n\ndef prepare(" + after.partition("def prepare(")[2])
    return lambda *more: start([str(recipe), "--runs_dir", str(train.folder.parent), "--steps", "1", *more])


def test_golds_that_are_lists_in_a_text_are_unwrapped_and_the_run_goes_on(train, strict, capfd):
    rows_of(train, ['["5"]'] * 3 + ["x=7", "9 (apples)"])
    assert strict() == 0
    out = capfd.readouterr().out.replace("\n", " ")
    assert "2 of " in out and "are met by their own spelling alone: row 3 'x=7', row 4 '9 (apples)'" in out


def test_golds_that_no_response_can_meet_are_said_when_few_and_refused_when_many(train, strict, capfd):
    rows_of(train, ["z" * 200])
    assert strict() == 0
    assert "are rejected by" in (out := capfd.readouterr().out.replace("\n", " ")) and "row 0 'zzz" in out
    rows_of(train, [f"{n} " + "z" * 200 for n in range(30)])
    assert strict("--overwrite") == USER_ERROR
    assert "No response could be right: mend the answers" in capfd.readouterr().err


def test_what_is_odd_about_prompts_is_said_once_for_all_data(train, model, strict, capfd):
    config = json.loads((model / "generation_config.json").read_text())
    end = config["eos_token_id"]
    (model / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": end + 1}))
    template(model, (model / "chat_template.jinja").read_text() + "{{ strftime_now('%Y') }}")
    held_out, trained_on = (train.folder / "base" / f"{name}.jsonl" for name in ("held_out", "train"))
    held_out.write_text(trained_on.read_text().splitlines(keepends=True)[3] + held_out.read_text())
    assert strict() == 0
    out = capfd.readouterr().out.replace("\n", " ")
    assert "warning: 1 of the " in out and "are also trained on" in out
    assert out.count("writes the date or draws at random") == 1
    assert out.count(f"({end}) ends no response") == 1


def test_an_evaluation_says_what_ends_a_turn_and_no_response_in_terms_of_its_own_setting(train, model, tmp_path, capfd):
    template(
        model, "{% for m in messages %}{{ m['content'] }}|over{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    config = json.loads((model / "generation_config.json").read_text())
    end = config["eos_token_id"]
    (model / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": [end + 1, 10**6]}))
    data = str(train.folder / "base" / "held_out.jsonl")
    how = ["--template", "{problem}", "--chat_template", "--samples", "1", "--max_response_tokens", "4"]
    assert evaluate([str(model), "--benchmarks", data, "--out", str(tmp_path / "out"), *how]) == 0
    out = capfd.readouterr().out.replace("\n", " ")
    assert "ends the assistant's turn with '|over', which is no token of its own" in out
    assert f"({end}) ends no response" in out and f"--stop_token_ids {end + 1} 1000000 {end} makes it one" in out
    assert "note: 1000000 ends no response" in out
