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

SPARSE = ["--checkpoint.every_steps", "20", "--checkpoint.keep_last", "9"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny_base):
    """60 steps on one trainer and two engines."""
    runs = with_base(tmp_path_factory.mktemp("undisturbed"), tiny_base)
    return run(runs, "--steps", "60", *SPARSE, engines=2).folder


def test_engines_killed_and_stopped_and_verifiers_killed_change_no_bit_of_a_run(tmp_path, tiny_base, undisturbed):
    limits = ["--rollout.max_engine_restarts", "6", "--deadline.stall_s", "10", "--deadline.sync_s", "8"]
    disturbed = run(
        with_base(tmp_path, tiny_base),
        *("--steps", "60", *SPARSE, *limits),
        engines=2,
        accidents=[
            (5, "rollout", "SIGKILL", "engine 0"),
            (15, "update", "SIGKILL", "engine 1"),
            (25, "rollout", "SIGSTOP", "engine 1"),
            (35, "reward", "SIGKILL", "verifiers"),
            (45, "sync", "SIGKILL", "engine 0"),
        ],
    )
    restarts = [r["engine_restarts"] for r in records(disturbed.folder)]
    assert restarts[3] == 0 and restarts[4] == 1 and restarts[14] - restarts[13] <= 1 and restarts[-1] == 4
    assert "engine 1" in disturbed.printed and "it said nothing for" in disturbed.printed
    assert_every_prompt_counts_once(disturbed.folder)
    assert_same(disturbed.folder, undisturbed, 60)
    for index in range(2):
        assert (disturbed.folder / "engines" / f"engine_{index}.log").exists()


def test_an_engine_that_stops_before_a_sync_is_given_up_alone_and_the_sync_done_again(tmp_path, tiny_base, undisturbed):
    settings = ["--steps", "20", *SPARSE, "--deadline.sync_s", "6"]
    accidents = [(3, "sync", "SIGSTOP", "engine 0")]
    disturbed = run(with_base(tmp_path, tiny_base), *settings, engines=2, accidents=accidents)
    assert "engine 0" in disturbed.printed and "it took no part in a weight sync for 6 s" in disturbed.printed
    assert records(disturbed.folder)[-1]["engine_restarts"] == 1
    assert_same(disturbed.folder, undisturbed, 20)


def test_one_loss_too_many_ends_the_run_and_names_the_engine_and_the_checkpoint(tmp_path, tiny_base):
    launch = Launch(
        with_base(tmp_path, tiny_base),
        "--rollout.max_engine_restarts", "0", "--steps", "50", "--rollout.max_staleness", "1",
        trainers=2,
        accidents=[(7, "update", "SIGKILL", "engine 0")],
    )  # fmt: skip
    assert launch.wait() == 1, launch.printed
    printed = launch.printed.replace("\n", " ")
    assert "stopped: engine 0 (pid" in printed and "its process ended" in printed
    assert "more than --rollout.max_engine_restarts allows" in printed
    assert "The last checkpoint is" in printed and "go on with --resume" in printed
    assert printed.count("stopped: engine 0") == 1
    launch.assert_nobody_is_left()


def test_a_killed_trainer_rank_takes_all_with_it_and_resume_ends_where_an_undisturbed_run_does(tmp_path, tiny_base):
    settings = ["--steps", "8", "--rollout.max_staleness", "1"]
    undisturbed = run(with_base(tmp_path / "undisturbed", tiny_base), *settings, trainers=2)
    runs = with_base(tmp_path / "disturbed", tiny_base)
    launch = Launch(runs, *settings, trainers=2, accidents=[(6, "update", "SIGKILL", "trainer 1")])
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


def test_a_killed_supervisor_ends_the_run_and_its_engine(tmp_path, tiny_base):
    accidents = [(3, "rollout", "SIGKILL", "supervisor 0")]
    launch = Launch(with_base(tmp_path, tiny_base), "--steps", "50", accidents=accidents)
    assert launch.wait() == 128 + signal.SIGKILL, launch.printed
    assert "rank 1 was ended by signal 9" in launch.printed
    assert "stopped: the supervisor of engine 0 is gone" in launch.printed.replace("\n", " ")
    launch.assert_nobody_is_left()


def test_an_engine_that_never_comes_ends_the_run(tmp_path, tiny_base):
    """Its supervisor is stopped, and the engine killed."""
    launch = Launch(
        with_base(tmp_path, tiny_base),
        "--steps", "50", "--deadline.start_s", "20",
        accidents=[(3, "rollout", "SIGSTOP", "supervisor 0"), (4, "rollout", "SIGKILL", "engine 0")],
    )  # fmt: skip
    assert launch.wait() == 1, launch.printed
    assert "engine 0 was not ready after" in launch.printed and "--deadline.start_s" in launch.printed
    launch.assert_nobody_is_left()


def test_ctrl_c_and_a_closed_terminal_save_and_resume_goes_on(tmp_path, tiny_base):
    runs, last = with_base(tmp_path, tiny_base), 0
    for number in (signal.SIGINT, signal.SIGHUP):
        resume = ["--resume"] if last else []
        launch = Launch(runs, "--steps", "100000", "--rollout.max_staleness", "1", *resume)
        assert launch.wait(lambda launch=launch, last=last: launch.last_step > last + 1) is None, launch.printed
        launch.launcher.send_signal(number)
        assert launch.wait() == 75, launch.printed
        launch.assert_nobody_is_left()
        last = launch.last_step
        assert (launch.folder / "checkpoints" / f"step_{last:06d}" / "state.json").exists()
    end = run(runs, "--steps", str(last + 2), "--rollout.max_staleness", "1", "--resume")
    assert [r["step"] for r in records(end.folder)] == list(range(1, last + 3))
    assert_every_prompt_counts_once(end.folder)


def test_a_run_that_the_first_rank_refuses_ends_its_samplers_too(tmp_path, tiny_base):
    launch = Launch(with_base(tmp_path, tiny_base), "--data.train", "nowhere.parquet")
    assert launch.wait() == 2, launch.printed
    assert launch.printed.count("does not exist") == 1
    launch.assert_nobody_is_left()


def test_what_the_settings_alone_forbid_is_refused_before_a_rank_is_there(tmp_path, tiny_base):
    launch = Launch(with_base(tmp_path, tiny_base), "--rollout.max_staleness", "2")
    assert launch.wait() == 2, launch.printed
    assert launch.printed.count("add --objective.correction truncate") == 1
    assert not launch.processes
