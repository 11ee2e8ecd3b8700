"""What a person meets at the command line, before anything runs."""

import inspect
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from fastgrpo import __main__ as command_line
from fastgrpo import __version__
from fastgrpo import train as train_command
from fastgrpo.command_line import did_you_mean
from fastgrpo.config import Config, OptimizerConfig, flatten
from fastgrpo.recipe import find_recipe, load_recipe, recipe_names
from fastgrpo.recipe.arguments import resolve, take_ranks
from fastgrpo.recipe.help import CHANGED_MOST, RARE_SECTIONS, all_settings
from tests.conftest import TINY

ROOT = Path(__file__).parents[1]
HEAD = "from fastgrpo.config import *\nreward = 'a:b'\n"


@pytest.fixture
def fastgrpo(monkeypatch, capsys):
    """Runs a command line in this process: (exit code, stdout, stderr). Ranks are noted in ``started``, not started."""
    started = []
    monkeypatch.setattr(train_command, "launch", lambda *launched: started.append(launched) or 0)

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            code = command_line._run(list(arguments))
        except SystemExit as left:
            code = left.code or 0
        return code, *capsys.readouterr()

    run.started = started
    return run


# The commands


@pytest.mark.parametrize("asking", [["help"], ["--help"], ["-h"]])
def test_help_names_every_command(fastgrpo, asking):
    code, said, _ = fastgrpo(*asking)
    assert code == 0 and all(f"  {name}" in said for name in command_line.COMMANDS)


def test_no_command_is_a_mistake_that_shows_the_commands(fastgrpo):
    code, said, complaint = fastgrpo()
    assert code == 2 and said == "" and complaint.startswith("usage: fastgrpo COMMAND")


@pytest.mark.parametrize("url, interface", [("http://10.77.0.1:8000", "^docker,lo"), ("http://localhost:8000", None)])
def test_nccl_may_leave_the_machine_where_servers_are_elsewhere(fastgrpo, monkeypatch, url, interface):
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "none")  # put back after the test
    monkeypatch.delenv("NCCL_SOCKET_IFNAME")
    assert fastgrpo("train", str(TINY), "--rollout.engine", "vllm", "--rollout.servers", url)[0] == 0
    assert os.environ.get("NCCL_SOCKET_IFNAME") == interface


def test_the_version_is_the_packages(fastgrpo):
    assert fastgrpo("--version") == (0, f"fastgrpo {__version__}\n", "")


def test_an_unknown_command_is_refused_with_the_near_one_and_the_known_ones(fastgrpo):
    code, _, complaint = fastgrpo("trian")
    assert code == 2 and "no command 'trian', did you mean train or track?" in complaint and "report RUN" in complaint


# Near names


@pytest.mark.parametrize(
    "name, expected",
    [
        ("quikstart", ", did you mean quickstart?"),
        ("just", ", did you mean justrl_deepseek or justrl_one?"),
        ("nemotron", ", did you mean questa_nemotron_1_5b?"),
        ("xyz", ""),
        ("", ""),
    ],
)
def test_a_near_name_is_near_as_a_whole_by_its_beginning_or_by_a_part(name, expected):
    assert did_you_mean(name, ["quickstart", "justrl_deepseek", "justrl_one", "questa_nemotron_1_5b"]) == expected


def test_at_most_three_names_are_near():
    assert did_you_mean("run", [f"run_{n}" for n in range(9)]).count("run_") == 3


def test_a_recipe_that_there_is_not_is_answered_with_near_ones_and_not_with_all(fastgrpo):
    code, said, complaint = fastgrpo("train", "quikstart")
    assert code == 2 and said == "" and fastgrpo.started == []
    assert complaint.startswith("fastgrpo: no recipe 'quikstart', did you mean quickstart? `fastgrpo recipes` lists")
    assert "justrl" not in complaint


@pytest.mark.parametrize("settings", [["mine.py"], ["quickstart"]])
def test_a_recipe_after_the_settings_is_refused_with_its_place(fastgrpo, settings):
    code, _, complaint = fastgrpo("train", "--steps", "3", *settings)
    assert code == 2 and "the recipe comes before the settings" in complaint


def test_a_run_that_there_is_not_is_answered_with_the_places_and_the_near_ones(fastgrpo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run in ("quickstart", "second_try"):
        (tmp_path / "runs" / run).mkdir(parents=True)
    code, _, complaint = fastgrpo("report", "runs/quikstart")
    assert code == 2
    for words in ("the folder runs/quikstart", "did you mean quickstart?", "the name of a run under runs/"):
        assert words in complaint, words
    assert "second_try" not in complaint


def test_a_run_is_found_by_its_name_alone(fastgrpo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    code, _, complaint = fastgrpo("report", "quickstart")
    assert code == 2 and "runs/quickstart" in complaint and "looked for" not in complaint  # found, and empty


# The number of ranks


@pytest.mark.parametrize(
    "arguments",
    [
        ["--ranks", "3", "quickstart", "--steps", "1"],
        ["quickstart", "--ranks", "3", "--steps", "1"],
        ["quickstart", "--steps", "1", "--ranks", "3"],
        ["quickstart", "--ranks=3", "--steps", "1"],
    ],
)
def test_the_number_of_ranks_may_stand_anywhere(fastgrpo, arguments):
    assert fastgrpo("train", *arguments)[0] == 0
    assert fastgrpo.started == [([str(find_recipe("quickstart")), "--steps", "1"], 3)]


@pytest.mark.parametrize("ranks, got", [(["--ranks"], "nothing"), (["--ranks", "two"], "two"), (["--ranks=0"], "0")])
def test_a_number_of_ranks_that_is_none_is_refused(ranks, got):
    with pytest.raises(ValueError, match=f"--ranks needs a number of at least 1, got {got}"):
        take_ranks(["quickstart", *ranks])


# Nothing is started for what is refused or only asked


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        ([str(TINY), "--data.prompts_per_step", "7"], "cannot be split into"),
        (["simplerl_zoo_qwen2_5_7b", "--ranks", "3"], "does not divide the 3 ranks"),
        (
            ["prorl_v2_1_5b", "--rollout.max_staleness", "1", "--rollout.engine", "vllm", "--rollout.gpus", "1"],
            "this recipe changes",
        ),
        (["quickstart", "--ranks", "2", "--rollout.gpus", "1"], "set --rollout.engine vllm"),
        (["quickstart", "--ranks", "2", "--rollout.gpus", "2"], "leaves none of the 2 ranks"),
        (["quickstart", "--fidelity", "verl"], "knows no --fidelity verl"),
        (["quickstart", "--nosuch", "1"], "nosuch"),
    ],
)
def test_a_refusal_is_said_once_before_any_rank_is_started(fastgrpo, arguments, complaint):
    code, _, said = fastgrpo("train", *arguments)
    assert code == 2 and said.count(complaint) == 1
    assert fastgrpo.started == []


@pytest.mark.parametrize("asking", ["--help", "--dry_run"])
def test_a_question_starts_no_rank(fastgrpo, asking):
    code, said, complaint = fastgrpo("train", "quickstart", asking)
    assert code == 0 and "rollout.group_size" in said and complaint == ""
    assert fastgrpo.started == []


def test_the_recipe_that_is_taken_without_one_is_said_once_and_handed_to_the_ranks(fastgrpo):
    _, said, _ = fastgrpo("train", "--steps", "1")
    assert said.count("no recipe given, taking quickstart") == 1
    assert fastgrpo.started[0][0] == [str(find_recipe("quickstart")), "--steps", "1"]


# The list of recipes


def test_the_recipes_are_a_table_of_100_columns_with_a_folder_in_one_line(fastgrpo):
    code, said, _ = fastgrpo("recipes")
    lines = said.splitlines()
    assert code == 0 and max(map(len, lines)) <= 100
    folders = {"simplerl_zoo": 20, "smollm2": 2}
    top_level = [n for n in recipe_names() if not n.startswith(tuple(folders))]
    assert len(lines) == 2 * (len(top_level) + len(folders))  # the name and the cost, and below it what it is
    assert [line.split()[0] for line in lines[::2]] == [*top_level, *(f"{folder}_*" for folder in folders)]
    for folder, count in folders.items():
        assert f"{count} recipes: fastgrpo recipes {folder}" in said


def test_a_folder_of_recipes_unfolds_to_one_line_each(fastgrpo):
    code, said, _ = fastgrpo("recipes", "simplerl_zoo")
    lines = said.splitlines()
    assert code == 0 and max(map(len, lines)) <= 100
    assert [line.split()[0] for line in lines] == [n for n in recipe_names() if n.startswith("simplerl_zoo")]
    assert all(re.search("(H100-hours|not published)$", line) for line in lines)


def test_a_part_of_a_name_lists_what_has_it(fastgrpo):
    _, said, _ = fastgrpo("recipes", "nemotron")
    assert "justrl_nemotron_1_5b" in said and "questa_nemotron_1_5b" in said and "quickstart" not in said


@pytest.mark.parametrize("name, part", [("dapo_qwen2_5_32b", "dapo"), *[("simplerl_zoo_qwen2_5_7b",) * 2]])
def test_a_single_recipe_shows_all_that_it_says(fastgrpo, name, part):
    code, said, _ = fastgrpo("recipes", part)
    recipe, words = load_recipe(find_recipe(name)), " ".join(said.split())
    assert code == 0
    for fact in (name, " ".join(recipe.about.split()), recipe.source, recipe.cost, recipe.reward):
        assert fact in words, fact


def test_a_part_that_no_recipe_has_is_refused_with_near_names(fastgrpo):
    code, said, complaint = fastgrpo("recipes", "quikstart")
    assert code == 2 and said == "" and "did you mean quickstart?" in complaint


# The help


def named_in(text: str) -> list[str]:
    return re.findall(r"^│ --([a-z_.]+)", text, re.MULTILINE)


def test_help_begins_with_the_settings_that_are_changed_most_and_ends_with_the_rare_ones(fastgrpo):
    _, said, _ = fastgrpo("train", "--help")
    assert named_in(said)[: len(CHANGED_MOST)] == list(CHANGED_MOST) and len(CHANGED_MOST) == 13
    sections = re.findall(r"^╭─ (\w+)", said, re.MULTILINE)
    assert tuple(sections[-3:]) == RARE_SECTIONS
    assert said.count("Dashes are accepted where underscores are shown") == 1


def test_help_has_every_setting_with_its_meaning_and_the_recipes_default(fastgrpo):
    _, said, _ = fastgrpo("train", "quickstart", "--help")
    assert sorted(named_in(said)[len(CHANGED_MOST) :]) == sorted(flatten(Config()))
    assert {s.name for s in all_settings() if not s.meaning} == set()
    words = " ".join(re.sub("[│╭╮╰╯─]", " ", said).split())
    (meaning,) = (s.meaning for s in all_settings() if s.name == "optimizer.learning_rate")
    source = inspect.getsource(OptimizerConfig)
    assert re.search(r'learning_rate: float = [^\n]*\n    """' + re.escape(meaning[:20]), source)
    assert f"--optimizer.learning_rate FLOAT {meaning} (default: 0.0002)" in words
    assert "--model.liger, --model.no_liger" in words and "--objective.kl k1|k2|k3" in words


def test_what_help_shows_is_what_is_parsed():
    recipe = load_recipe(find_recipe("quickstart"))
    flags = [s for s in all_settings() if s.takes.startswith(",")]
    assert len(flags) > 5
    for setting in flags:
        _, config = resolve(recipe, [setting.takes.removeprefix(", ")])
        assert flatten(config)[setting.name] is False


@pytest.mark.parametrize("dashed", ["--rollout.group-size", "--rollout.group_size"])
def test_dashes_are_accepted_where_underscores_are_shown(dashed):
    assert resolve(load_recipe(TINY), [dashed, "6"])[1].rollout.group_size == 6


def test_rare_sections_are_sections():
    assert set(RARE_SECTIONS) <= {f.name for f in fields(Config)}


# The dry run


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_shown_on_any_machine(fastgrpo, name):
    code, said, complaint = fastgrpo("train", name, "--dry_run")
    ranks = load_recipe(find_recipe(name)).ranks
    assert code == 0 and complaint == ""
    why = f"{ranks} ranks, which the recipe names" if (ranks or 0) > 1 else "1 rank, "
    assert f"\nshown on {why}" in said


def test_a_recipe_that_names_no_ranks_is_shown_on_the_fewest_that_it_runs_on(fastgrpo, tmp_path):
    recipe = tmp_path / "mine.py"
    recipe.write_text(HEAD + "config = Config(rollout=RolloutConfig(tensor_parallel=4))\n")
    _, said, _ = fastgrpo("train", str(recipe), "--dry_run", "--parallel.replicas", "3")
    assert "shown on 12 ranks, the fewest that it can run on" in said


def test_a_dry_run_on_no_number_of_ranks_is_refused_with_the_reason(fastgrpo, tmp_path):
    recipe = tmp_path / "mine.py"
    recipe.write_text(HEAD + "config = Config(rollout=RolloutConfig(max_staleness=1))\n")
    code, _, complaint = fastgrpo("train", str(recipe), "--dry_run")
    assert code == 2 and "--rollout.max_staleness 1 needs engines" in complaint


def test_a_dry_run_is_shown_on_the_ranks_that_are_asked_for(fastgrpo):
    _, said, _ = fastgrpo("train", "simplerl_zoo_qwen2_5_7b", "--dry_run", "--ranks", "6")
    assert "shown on 6 ranks, as asked" in said and "  ranks: 6 (1 x 6 shards)" in said
    code, _, complaint = fastgrpo("train", "simplerl_zoo_qwen2_5_7b", "--dry_run", "--ranks", "3")
    assert code == 2 and "does not divide the 3 ranks" in complaint


def test_gpus_that_only_sample_are_those_of_every_node(fastgrpo):
    _, said, _ = fastgrpo("train", "dapo_qwen2_5_32b", "--dry_run", "--rollout.engine", "vllm", "--rollout.gpus", "4")
    assert "shown on 128 ranks" in said and "  ranks: 64 (1 x 64 shards)" in said


@pytest.mark.parametrize("ranks", ["0", "'8'", "True"])
def test_ranks_of_a_recipe_that_are_no_number_are_refused(tmp_path, ranks):
    recipe = tmp_path / "mine.py"
    recipe.write_text(HEAD + f"config = Config()\nranks = {ranks}\n")
    with pytest.raises(ValueError, match="`ranks` must be a number of GPUs of at least 1"):
        load_recipe(recipe)


def test_a_dry_run_of_a_recipe_in_small_shows_its_algorithm_and_its_phases(fastgrpo):
    code, said, _ = fastgrpo("train", "prorl_v2_1_5b", "--shrink", "--rollout.group_size", "6", "--dry_run")
    assert code == 0
    for line in (
        '--objective.advantage "batch_normalised"', "'first_step': 1", "--rollout.group_size 6", "--steps 4",
        "verifier fastgrpo.rewards.prime_union:prime_union", "shown on 1 rank,",
    ):  # fmt: skip
        assert line in said, line


def test_justrl_constants_are_the_defaults(fastgrpo):
    _, said, _ = fastgrpo("train", "justrl_deepseek_1_5b", "--dry_run")
    for line in (
        "--objective.clip_low 0.2", "--objective.clip_high 0.28", "--objective.dual_clip 10.0",
        "--optimizer.learning_rate 1e-06", "--optimizer.warmup_steps 10", "--optimizer.weight_decay 0.1",
        "--optimizer.max_grad_norm 1.0", "--optimizer.updates_per_step 4", "--rollout.temperature 1.0",
        "--rollout.max_response_tokens 15360", "--data.max_prompt_tokens 1024", "--steps 4380",
        "responses per step: 256 prompts x 8 = 2048", "each on 64 prompts x 8 = 512 responses",
    ):  # fmt: skip
        assert line in said, line


# A reader that leaves

UNREAD = [
    "fastgrpo train --help",
    "fastgrpo train quickstart --dry_run",
    "fastgrpo recipes",
    "fastgrpo recipes quickstart",
    "fastgrpo evaluate --help",
    "fastgrpo report --help",
    "fastgrpo --help",
    "fastgrpo.train --help",
    "fastgrpo.evaluate --help",
    "fastgrpo.report --help",
]
IN_A_PIPE_WITHOUT_A_READER = """
import os, runpy, sys, traceback
import fastgrpo.train, fastgrpo.evaluate, fastgrpo.report, fastgrpo.evaluation.ranks  # once, for all that is forked

for command in sys.argv[1:]:
    for line_by_line in (True, False):  # an error while it prints, or when it ends
        print(command, file=sys.stderr, flush=True)
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.close(reader)
            os.dup2(writer, 1)
            sys.stdout.reconfigure(line_buffering=line_by_line)
            module, *sys.argv[1:] = command.split()
            try:
                try:
                    runpy.run_module(module, run_name="__main__", alter_sys=True)
                except SystemExit:
                    pass
                sys.stdout.flush()  # as Python does when it ends, which takes long with all that is imported
            except BaseException:
                traceback.print_exc()
            os._exit(0)
        os.close(reader)
        os.close(writer)
        os.wait()
"""


def test_a_reader_that_leaves_ends_any_command_without_a_word():
    environment = {n: v for n, v in os.environ.items() if n != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-W", "ignore", "-c", IN_A_PIPE_WITHOUT_A_READER, *UNREAD]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout == ""
    assert done.stderr.splitlines() == [command for command in UNREAD for _ in range(2)]


@pytest.mark.parametrize(
    "arguments, launched, trainers",
    [
        (["--ranks", "16", "--rollout.engine", "vllm", "--rollout.gpus", "4"], {}, 12),
        (
            ["--rollout.engine", "vllm", "--rollout.gpus", "1"],
            {"RANK": "0", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"},
            6,
        ),
    ],
)
def test_a_dry_run_has_the_nodes_of_the_run(arguments, launched, trainers, monkeypatch, capsys):
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    command, start = ("quickstart", "--dry_run", *arguments), train_command.main if launched else train_command.command
    assert start(command) == 0
    assert f"ranks: {trainers} (" in capsys.readouterr().out
