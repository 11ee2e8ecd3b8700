"""The rules of settings are part of their fields, and an old name leads to the new one."""

import ast
import inspect
from dataclasses import replace
from typing import Any

import pytest

from fastgrpo.algorithm import Phase
from fastgrpo.config import RENAMED, RULES, Config, differences, flatten, settings, with_settings
from fastgrpo.recipe import load_recipe
from fastgrpo.recipe.arguments import asked_run
from fastgrpo.train import main

OLD = [(*old.split(), "x")[:2] for old in RENAMED]  # a name and a value
NOW = dict(zip(OLD, RENAMED.values(), strict=True))


def section_of(name: str) -> Any:
    return type(getattr(Config(), name.split(".")[0]))


def recipe_file(folder, *lines):
    path = folder / "mine.py"
    path.write_text("\n".join(["from fastgrpo.config import *", "reward = 'a:b'", *lines]))
    return path


@pytest.mark.parametrize("name, value", OLD)
@pytest.mark.parametrize("spelled", ["--{} {}", "--{}={}"])
@pytest.mark.parametrize("letter", "_-")
def test_an_old_name_on_the_command_line_is_refused_with_the_new_one(name, value, spelled, letter, capfd):
    assert main(["quickstart", "--dry_run", *spelled.format(name.replace("_", letter), value).split()]) == 2
    assert f"is now called --{NOW[name, value]}\n" in capfd.readouterr().err


@pytest.mark.parametrize("name, value", OLD)
def test_an_old_name_in_a_recipe_is_refused_with_the_new_one_and_the_line(name, value, tmp_path):
    section, field = name.split(".")
    path = recipe_file(tmp_path, f"config = Config({section}={section_of(name).__name__}({field}={value!r}))")
    with pytest.raises(ValueError, match=f"line 3: .* is now called --{NOW[name, value]}$"):
        load_recipe(path)


@pytest.mark.parametrize("name, value", OLD)
@pytest.mark.parametrize(
    "give",
    [
        lambda name, value: with_settings(Config(), {name: value}),
        lambda name, value: Phase(1, {name: value}),
        lambda name, value: replace(getattr(Config(), name.split(".")[0]), **{name.split(".")[1]: value}),
    ],
    ids=["with_settings", "a phase", "replace"],
)
def test_an_old_name_in_python_is_refused_with_the_new_one(give, name, value):
    with pytest.raises(ValueError, match=f"is now called --{NOW[name, value]}$"):
        give(name, value)


@pytest.mark.parametrize("name, value", OLD)
def test_an_old_name_in_a_recipes_fidelity_is_refused_with_the_new_one(name, value, tmp_path):
    recipe = load_recipe(recipe_file(tmp_path, "config = Config()", f"fidelity = {{{name!r}: {value!r}}}"))
    with pytest.raises(ValueError, match=f"is now called --{NOW[name, value]}$"):
        recipe.with_fidelity()


@pytest.mark.parametrize("old", RENAMED)
def test_every_new_name_is_one_and_no_old_one_is(old):
    name, *value = RENAMED[old].split()
    assert old not in RULES and name in RULES
    if value:
        assert flatten(with_settings(Config(), {name: value[0]}))[name] == value[0]


def test_a_continued_run_may_differ_where_the_field_says_so_and_nowhere_else():
    start = flatten(Config())
    other = dict.fromkeys(start, "another")
    named = {text.split(":")[0].removeprefix("--") for text in differences(start, other)}
    assert named == {name for name in start if not RULES[name].get("free_on_resume")}
    assert {"seed", "rollout.group_size", "optimizer.learning_rate", "model.path"} <= named


def test_what_a_phase_may_change_is_not_free_on_resume():
    """It changes what is learned."""
    assert [name for name, rules in RULES.items() if rules.get("may_change") and rules.get("free_on_resume")] == []


@pytest.mark.parametrize(
    "name, value, kind",
    [("rollout.stop_token_ids", ("2",), r"tuple\[int, \.\.\.\]"), ("optimizer.betas", (0.9,), r"tuple\[float, float\]"),
     ("data.levels", (1.5,), r"tuple\[int, \.\.\.\]"), ("reward.unformatted", "0", "float or None")],
)  # fmt: skip
def test_the_type_that_a_setting_needs_is_said(name, value, kind):
    with pytest.raises(ValueError, match=f"--{name} cannot be .*: it is {kind}$"):
        with_settings(Config(), {name: value})


def sentences() -> dict[str, str]:
    """The docstring of every field, by the setting's name."""
    found = {}
    sections = {type(value).__name__: f"{name}." for name, value in vars(Config()).items()}
    for node in ast.parse(inspect.getsource(settings)).body:
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
            for field, text in zip(node.body, node.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    found[sections.get(node.name, "") + field.target.id] = ast.literal_eval(text.value)
    return found


def test_the_help_says_what_every_setting_is(capsys):
    with pytest.raises(SystemExit):
        asked_run(["quickstart", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    said = sentences()
    assert said.keys() == RULES.keys()
    assert [name for name, text in said.items() if " ".join(text.split()) not in shown] == []
