"""How far behind the weights responses may be, over hundreds of steps."""

import signal

import pytest

from tests.run.accidents import (
    Launch,
    assert_every_prompt_counts_once,
    assert_same,
    records,
    run,
    watched,
    with_base,
)

pytestmark = pytest.mark.slow

SMALL_STEPS = [
    "--data.prompts_per_step", "2", "--optimizer.updates_per_step", "1", "--checkpoint.every_steps", "0",
    "--optimizer.learning_rate", "1e-5",
]  # fmt: skip
WITH = {1: ["--rollout.max_staleness", "1"], 2: ["--rollout.max_staleness", "2", "--objective.correction", "truncate"]}


@pytest.mark.parametrize("max_staleness, num_steps", [(1, 100), (2, 250)])
def test_no_token_is_ever_further_behind_than_allowed(tmp_path, tiny_base, max_staleness, num_steps):
    """By the version of every token of hundreds of steps, as its engine noted it."""
    runs = with_base(tmp_path, tiny_base)
    folder = run(runs, "--steps", str(num_steps), *SMALL_STEPS, *WITH[max_staleness]).folder
    steps = watched(folder)
    staleness = [line["step"] - 1 - line["oldest"] for line in steps]
    assert len(steps) == num_steps and 0 < max(staleness) <= max_staleness
    assert all(line["newest"] <= line["step"] - 1 for line in steps)
    assert staleness == [r["staleness_max"] for r in records(folder)]
    changed = sum(line["num_changed"] for line in steps)
    assert changed > 0 if max_staleness == 2 else changed == 0  # weights were replaced under running responses
    assert_every_prompt_counts_once(folder)


def test_replacement_keeps_the_bound_too(tmp_path, tiny_base):
    settings = [
        "--steps",
        "60",
        "--rollout.zero_signal_groups",
        "replace",
        "--optimizer.learning_rate",
        "1e-5",
        *WITH[1],
    ]
    folder = run(with_base(tmp_path, tiny_base), *settings).folder
    assert max(r["staleness_max"] for r in records(folder)) == 1
    assert all(r["groups_kept"] == 8 or r["sampling_rounds"] == 10 for r in records(folder))
    assert any(r["sampling_rounds"] > 1 for r in records(folder))
    assert_every_prompt_counts_once(folder)


def test_a_run_with_rollouts_ahead_is_continued_exactly_after_a_kill(tmp_path, tiny_base):
    settings = ["--steps", "8", "--checkpoint.every_steps", "4", "--rollout.zero_signal_groups", "replace", *WITH[1]]
    whole = run(with_base(tmp_path / "whole", tiny_base), *settings)
    runs = with_base(tmp_path / "killed", tiny_base)
    killed = Launch(runs, *settings, accidents=[(7, "update", "SIGKILL", "trainer 0")])
    assert killed.wait() == 128 + signal.SIGKILL, killed.printed
    killed.assert_nobody_is_left()
    resumed = run(runs, *settings, "--resume")
    assert "step_000004" in resumed.printed
    assert_same(resumed.folder, whole.folder, 8)
    assert_every_prompt_counts_once(resumed.folder)
