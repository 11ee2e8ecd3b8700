"""Processes that are killed or stopped in the middle of a run: it goes on without a trace, or ends and says why."""

import signal

import pytest

from tests.run.accidents import (
    Launch,
    assert_every_prompt_counts_once,
    assert_same,
    records,
    run,
    with_base,
)

pytestmark = pytest.mark.slow


def test_killed_verifiers_and_a_killed_trainer_rank_change_no_bit_of_a_run_that_is_continued(tmp_path, tiny_base):
    settings = ["--steps", "8"]
    undisturbed = run(with_base(tmp_path / "undisturbed", tiny_base), *settings, trainers=2)
    runs = with_base(tmp_path / "disturbed", tiny_base)
    accidents = [(3, "reward", "SIGKILL", "verifiers"), (6, "update", "SIGKILL", "trainer 1")]
    launch = Launch(runs, *settings, trainers=2, accidents=accidents)
    assert launch.wait() == 128 + signal.SIGKILL, launch.printed
    assert "rank 1 was ended by signal 9" in launch.printed
    launch.assert_nobody_is_left()
    resumed = run(runs, *settings, "--resume", trainers=2)
    assert_same(resumed.folder, undisturbed.folder, 8)
    assert_every_prompt_counts_once(resumed.folder)


def test_a_stopped_trainer_rank_ends_the_run_by_the_watchdog_that_names_it(tmp_path, tiny_base):
    launch = Launch(
        with_base(tmp_path, tiny_base),
        "--steps", "50", "--deadline.update_s", "8",
        trainers=2,
        accidents=[(3, "update", "SIGSTOP", "trainer 1")],
    )  # fmt: skip
    assert launch.wait() == 1, launch.printed
    printed = launch.printed
    assert 'in phase "update", more than --deadline.update_s 8' in printed
    assert "missing: rank 1 (pid" in printed and "no sign of life" in printed
    launch.assert_nobody_is_left()


def test_ctrl_c_and_a_closed_terminal_save_and_resume_goes_on(tmp_path, tiny_base):
    runs, last = with_base(tmp_path, tiny_base), 0
    for number in (signal.SIGINT, signal.SIGHUP):
        resume = ["--resume"] if last else []
        launch = Launch(runs, "--steps", "100000", *resume)
        assert launch.wait(lambda launch=launch, last=last: launch.last_step > last + 1) is None, launch.printed
        launch.launcher.send_signal(number)
        assert launch.wait() == 75, launch.printed
        launch.assert_nobody_is_left()
        last = launch.last_step
        assert (launch.folder / "checkpoints" / f"step_{last:06d}" / "state.json").exists()
    end = run(runs, "--steps", str(last + 2), "--resume")
    assert [r["step"] for r in records(end.folder)] == list(range(1, last + 3))
    assert_every_prompt_counts_once(end.folder)


def test_what_the_settings_alone_forbid_is_refused_before_a_rank_is_there(tmp_path, tiny_base):
    launch = Launch(with_base(tmp_path, tiny_base), "--rollout.max_staleness", "2")
    assert launch.wait() == 2, launch.printed
    assert launch.printed.count("or name --rollout.servers") == 1
    assert not launch.processes
