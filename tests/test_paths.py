"""Where a path is asked for, ``~`` and ``$HOME`` mean what they mean to a shell."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from fastgrpo.algorithm import Algorithm, Phase
from fastgrpo.config import RULES, Config, ModelConfig, flatten, with_paths
from fastgrpo.evaluation.benchmarks import find_benchmark
from fastgrpo.evaluation.settings import PATHS, Settings
from fastgrpo.recipe import find_recipe, load_recipe
from fastgrpo.recipe.arguments import parse
from fastgrpo.report.__main__ import find_run
from fastgrpo.run.folder import RunFolder
from fastgrpo.track import require_trackers

NO_PATHS = {"name", "rollout.engine", "data.suffix", "data.template"}
NO_PATHS_OF_AN_EVALUATION = {"suite", "template", "behaviours", "behaviours_model", "name", "engine", "device", "dtype"}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def recipe(home):
    (home / "mine.py").write_text("from fastgrpo.config import *\nconfig = Config()\nreward = '~/verifier.py:judge'\n")
    return load_recipe(find_recipe("~/mine.py"))


def is_text(default):
    return isinstance(default, str) or (isinstance(default, tuple) and all(isinstance(d, str) for d in default))


def test_every_setting_of_free_text_is_a_path_or_known_to_be_none():
    hints = {n: f.type for n, f in named_fields().items()}
    text = {
        n for n, default in flatten(Config()).items() if isinstance(default, str) and "Literal" not in str(hints[n])
    }
    text |= {n for n, hint in hints.items() if hint == tuple[str, ...]}
    assert text == {n for n, rules in RULES.items() if rules.get("is_path")} | (text & NO_PATHS)
    of_evaluations = {f.name for f in fields(Settings) if is_text(f.default) and f.name != "stop_token_ids"}
    assert of_evaluations == {*PATHS} | NO_PATHS_OF_AN_EVALUATION


def named_fields():
    found = {f.name: f for f in fields(Config)}
    sections = [n for n in found if hasattr(getattr(Config(), n), "__dataclass_fields__")]
    return {n: f for n, f in found.items() if n not in sections} | {
        f"{s}.{f.name}": f for s in sections for f in fields(getattr(Config(), s))
    }


@pytest.mark.parametrize("home_is", ["~", "$HOME", "${HOME}"])
def test_the_home_is_filled_in_wherever_a_path_is_given(home_is, recipe, home):
    names = [name for name, rules in RULES.items() if rules.get("is_path")]
    given = [word for name in names for word in (f"--{name}", f"{home_is}/{name}")]
    values = flatten(parse(recipe, given))
    assert {name: values[name] for name in names} == {
        name: [f"{home}/{name}"] if name in ("track", "rollout.servers") else f"{home}/{name}" for name in names
    }
    assert parse(recipe, [f"--runs_dir={home_is}/r", "--data.train", "{run_dir}/d"]).data.train == f"{home}/r/run/d"
    settings = Settings(
        **{n: (f"{home_is}/{n}",) if n in ("compare", "benchmarks") else f"{home_is}/{n}" for n in PATHS}
    )
    assert [getattr(settings, n) for n in PATHS] == [
        (f"{home}/{n}",) if n in ("compare", "benchmarks") else f"{home}/{n}" for n in PATHS
    ]


def test_in_a_recipe_in_a_phase_and_in_the_commands_too(recipe, home):
    config = with_paths(replace(recipe.config, model=ModelConfig(path="~/m"), track=("~/t.py:T",)))
    assert (config.model.path, config.track) == (f"{home}/m", (f"{home}/t.py:T",))
    phase = Algorithm(phases=(Phase(5, {"data.train": "~/hard.jsonl"}),))
    assert phase.config_at(config, 5).data.train == f"{home}/hard.jsonl"
    assert recipe.reward == f"{home}/verifier.py:judge"
    (home / "runs" / "one").mkdir(parents=True)
    assert find_run("~/runs/one") == home / "runs" / "one"
    (home / "data" / "AIME24").mkdir(parents=True)
    (home / "data" / "AIME24" / "test.parquet").touch()
    assert find_benchmark("AIME24", Settings(data="~/data").data)[1] == f"{home}/data/AIME24/test.parquet"
    with pytest.raises(ValueError, match=f"there is no '{home}/t.py'"):
        require_trackers(config.track)


def test_what_is_not_known_stays_as_it_is(recipe):
    for path in ("~nobody_of_this_name/x", "$NOT_SET_ANYWHERE/x", "a~/x", "owner/name", "", "$(pwd)", "100$"):
        assert parse(recipe, ["--data.held_out", path]).data.held_out == path


def test_a_run_that_noted_a_path_as_it_was_given_goes_on(recipe, home):
    config = replace(parse(recipe, ["--data.train", "~/t.jsonl", "--runs_dir", "~/runs"]), resume=True)
    folder = RunFolder(Path(config.run_dir))
    folder.path.mkdir(parents=True)
    folder.begin(config, {"algorithm": {}}, print)
    folder.metrics.append([{"step": 1}])
    facts = json.loads(folder.facts.read_text())
    folder.facts.write_text(json.dumps({**facts, "config": {**facts["config"], "data.train": "~/t.jsonl"}}))
    folder.check(config, {})
