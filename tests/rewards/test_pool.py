"""What a verifier can do to the pool, and what the pool makes of it. The verifiers are functions of one file."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fastgrpo.rewards import Verdict, VerifierPool

RIGHT, WRONG = Verdict(True), Verdict(False)
TIMEOUT, DIED, RAISED = Verdict(False, "timeout"), Verdict(False, "died"), Verdict(False, "raised")

UNFORMATTED = Verdict(False, unformatted=True)

STRICT = "fastgrpo.rewards.strict_boxed:strict_boxed"


@pytest.fixture(scope="module")
def pool(recipe: str) -> Iterator[VerifierPool]:
    """One pool for all: each test finds it as the test before left it."""
    with VerifierPool(f"{recipe}:naughty", workers=2, timeout_s=1.0, memory_limit_gib=1.0) as pool:
        yield pool


def boxes(num: int) -> list[tuple[str, str]]:
    """Every third one wrong."""
    return [(f"\\boxed{{{i}}}", str(i) if i % 3 else "no") for i in range(num)]


def verdicts_on_boxes(num: int) -> list[Verdict]:
    return [RIGHT if i % 3 else WRONG for i in range(num)]


def workers_of(pid: int) -> set[int]:
    found = set()
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie too
            if any("fastgrpo.rewards.pool.worker" in word for word in child.cmdline()):
                found.add(child.pid)
    return found


def wait_until_gone(pid: int, timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, f"process {pid} is still there"
            time.sleep(0.02)


def test_verdicts_keep_the_order_of_the_items(pool: VerifierPool) -> None:
    assert pool.score(boxes(1000)) == verdicts_on_boxes(1000)


def test_no_items_have_no_verdicts(pool: VerifierPool) -> None:
    assert pool.score([]) == []


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("spin", TIMEOUT),
        ("spin_in_c", TIMEOUT),
        ("spin_on_a_big_integer", TIMEOUT),
        ("leave", DIED),
        ("crash", DIED),
        ("close_everything", DIED),
        ("recurse", RAISED),
        ("say_exit", RAISED),
        ("complain", RAISED),
        ("hoard_memory", RAISED),
        ("map_memory", RAISED),
        ("no_answer", UNFORMATTED),
        ("another_word", RAISED),
        ("reward", Verdict(None, score=-1.0)),
        ("text", RAISED),
        ("shout", RIGHT),
        ("read_input", RIGHT),
        ("ask_to_end", RIGHT),
        ("torch_is_loaded", WRONG),
        ("outrun_the_cpu_limit", TIMEOUT),
        ("cpu_time_is_limited", RIGHT),
    ],
)
def test_a_misbehaving_item_costs_its_own_verdict_only(pool: VerifierPool, response: str, expected: Verdict) -> None:
    items, verdicts = boxes(40), verdicts_on_boxes(40)
    items[5], verdicts[5] = (response, "a"), expected
    assert pool.score(items) == verdicts


def test_a_response_that_is_slow_but_in_time_is_right_in_any_number(pool: VerifierPool) -> None:
    assert pool.score([("nap", "")] * 8) == [RIGHT] * 8


def test_a_job_of_nothing_but_failures_ends(pool: VerifierPool) -> None:
    items = [("leave", ""), ("spin", ""), ("hoard_memory", ""), ("complain", "")] * 2
    assert pool.score(items) == [DIED, TIMEOUT, RAISED, RAISED] * 2


def test_the_last_error_says_what_happened(pool: VerifierPool) -> None:
    pool.score([("complain", "needle")])
    assert "KeyError: 'needle'" in pool.last_error
    pool.score([("leave", "")])
    assert "exit status 0" in pool.last_error


def test_a_worker_killed_between_calls_costs_no_verdict(pool: VerifierPool) -> None:
    for pid in workers_of(os.getpid()):
        os.kill(pid, signal.SIGKILL)
        wait_until_gone(pid)
    assert pool.score(boxes(20)) == verdicts_on_boxes(20)


def test_an_item_whose_worker_died_once_is_judged_by_another(pool: VerifierPool, tmp_path: Path) -> None:
    items, verdicts = boxes(40), verdicts_on_boxes(40)
    items[5], verdicts[5] = ("crash_once", str(tmp_path / "flag")), RIGHT
    assert pool.score(items) == verdicts


def test_an_item_that_kills_every_worker_is_wrong_after_two(pool: VerifierPool, tmp_path: Path) -> None:
    items, verdicts = boxes(40), verdicts_on_boxes(40)
    for number in (0, 5, 39):
        items[number], verdicts[number] = ("note_and_leave", str(tmp_path / str(number))), DIED
    assert pool.score(items) == verdicts
    for number in (0, 5, 39):
        pids = (tmp_path / str(number)).read_text().split()
        assert len(pids) == len(set(pids)) == 2


def signal_all(pids: set[int], number: int) -> None:
    for pid in pids:
        os.kill(pid, number)


def test_a_pool_that_is_killed_in_the_middle_of_a_call_changes_no_verdict(recipe: str) -> None:
    items = [item for box in boxes(15) for item in (("nap", ""), box)]
    verdicts = [verdict for of_box in verdicts_on_boxes(15) for verdict in (RIGHT, of_box)]
    others = workers_of(os.getpid())
    with VerifierPool(f"{recipe}:naughty", workers=3, timeout_s=30, memory_limit_gib=1) as pool:
        assert pool.score(items) == verdicts  # undisturbed
        mine = workers_of(os.getpid()) - others
        assert len(mine) == 3
        threading.Timer(0.3, signal_all, (mine, signal.SIGKILL)).start()
        assert pool.score(items) == verdicts
        assert not mine & workers_of(os.getpid())


def test_a_pool_that_is_killed_while_it_starts_recovers(recipe: str) -> None:
    """All die at once before they are ready: that is one failure to start, not as many as there are processes."""
    others = workers_of(os.getpid())
    with VerifierPool(f"{recipe}:naughty", workers=4, timeout_s=30, memory_limit_gib=1) as pool:
        first = workers_of(os.getpid()) - others
        signal_all(first, signal.SIGKILL)
        for pid in first:
            wait_until_gone(pid)
        killer = threading.Thread(target=kill_before_they_are_ready, args=(4, others | first))
        killer.start()
        assert pool.score(boxes(20)) == verdicts_on_boxes(20)
        killer.join()


def kill_before_they_are_ready(count: int, others: set[int]) -> None:
    deadline = time.monotonic() + 10
    found: set[int] = set()
    while len(found) < count and time.monotonic() < deadline:
        found |= (new := workers_of(os.getpid()) - others - found)
        signal_all(new, signal.SIGSTOP)
        time.sleep(0.001)
    signal_all(found, signal.SIGKILL)


def test_workers_that_are_stopped_are_replaced_when_their_items_are_late(recipe: str) -> None:
    """Their items in hand had no verdict in time; all that waited behind these is judged by others."""
    others = workers_of(os.getpid())
    with VerifierPool(f"{recipe}:naughty", workers=2, timeout_s=1.0, memory_limit_gib=1) as pool:
        mine = workers_of(os.getpid()) - others
        threading.Timer(0.3, signal_all, (mine, signal.SIGSTOP)).start()
        verdicts = pool.score([("nap", "")] * 20)
        assert verdicts.count(TIMEOUT) == 2 and verdicts.count(RIGHT) == 18
        for pid in mine:
            wait_until_gone(pid)
        assert pool.score(boxes(20)) == verdicts_on_boxes(20)


def test_what_a_hanging_verifier_started_is_ended_with_it(pool: VerifierPool, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    assert pool.score([("start_a_child_and_hang", str(pid_file))]) == [TIMEOUT]
    wait_until_gone(int(pid_file.read_text()))


def test_an_interrupted_call_leaves_nothing_for_the_next(pool: VerifierPool) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        pool.score([("nap", "")] * 50)
    signal.signal(signal.SIGINT, before)
    assert pool.score(boxes(20)) == verdicts_on_boxes(20)


def test_the_thread_that_made_the_pool_may_end_in_the_middle_of_a_call(recipe: str) -> None:
    made: list[VerifierPool] = []

    def make() -> None:
        made.append(VerifierPool(f"{recipe}:naughty", 1, timeout_s=5, memory_limit_gib=1))
        time.sleep(0.3)

    thread = threading.Thread(target=make)
    thread.start()
    while not made:
        time.sleep(0.01)
    with made[0] as pool:
        assert pool.score([("nap", "")] * 4) == [RIGHT] * 4
    assert not thread.is_alive()


def test_calls_from_several_threads_take_turns(pool: VerifierPool) -> None:
    found: list[list[Verdict]] = []
    threads = [threading.Thread(target=lambda: found.append(pool.score(boxes(200)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [verdicts_on_boxes(200)] * 3


def test_a_submitted_job_leaves_the_caller_its_thread(recipe: str) -> None:
    with VerifierPool(f"{recipe}:naughty", 1, timeout_s=5, memory_limit_gib=1) as pool:
        first, second = pool.submit([("nap", "")] * 2), pool.submit(boxes(20))
        assert not first.done()
        assert first.result() == [RIGHT] * 2
        assert second.result() == verdicts_on_boxes(20)
        with pytest.raises(ValueError, match="item 0 must be"):
            pool.submit([("", 42)])  # type: ignore[list-item]
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit([("", "")])


def test_closing_a_pool_cancels_what_was_submitted(recipe: str) -> None:
    pool = VerifierPool(f"{recipe}:naughty", 1, timeout_s=5, memory_limit_gib=1)
    futures = [pool.submit([("nap", "")] * 5) for _ in range(3)]
    time.sleep(0.3)  # into the first of them
    pool.close()
    assert [future.cancelled() for future in futures[1:]] == [True, True]
    assert futures[0].result() == [RIGHT] * 5


@pytest.mark.slow
def test_a_worker_runs_out_of_cpu_time_when_the_pool_is_stopped(recipe: str) -> None:
    """The pool's clock stands still with it; the kernel's does not."""
    script = f"""
        import os, signal, threading, time
        from fastgrpo.rewards import VerifierPool
        pool = VerifierPool({recipe + ":naughty"!r}, workers=1, timeout_s=0.5, memory_limit_gib=1)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGSTOP)).start()
        pool.score([("spin_in_c", "")])
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    with parent, contextlib.ExitStack() as stack:
        stack.callback(parent.kill)
        while psutil.Process(parent.pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.02)
        (worker,) = workers_of(parent.pid)
        wait_until_gone(worker, timeout_s=60.0)


def test_texts_of_any_kind_and_length_arrive_unchanged(recipe: str) -> None:
    texts = ["", "\0", "a\0b", "\ud800", "\udfff\ud800", "\r\n\x1b[0m\x7f", "\U0001f600\ufeff", "\\boxed{" * 200_000]
    with VerifierPool(f"{recipe}:echo", 2, timeout_s=10, memory_limit_gib=2, self_test=[]) as pool:
        assert pool.score([(text, text) for text in texts]) == [RIGHT] * len(texts)
        assert pool.score([(text, text + "x") for text in texts]) == [WRONG] * len(texts)
        big = "é" * 1_000_000
        assert pool.score([(big, big)] * 16) == [RIGHT] * 16


def test_no_process_is_left_after_closing() -> None:
    before = workers_of(os.getpid())
    with VerifierPool(STRICT, workers=3, timeout_s=5, memory_limit_gib=1) as pool:
        started = workers_of(os.getpid()) - before
        assert len(started) == 3
    pool.close()
    assert not any(psutil.pid_exists(pid) for pid in started)
    with pytest.raises(RuntimeError, match="closed"):
        pool.score([("", "")])


def test_a_forgotten_pool_ends_its_processes() -> None:
    before = workers_of(os.getpid())
    pool = VerifierPool(STRICT, workers=1, timeout_s=5, memory_limit_gib=1)
    (pid,) = workers_of(os.getpid()) - before
    del pool
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("response", ["\\boxed{42}", "spin_in_c"], ids=["idle", "hanging"])
def test_no_process_is_left_when_the_parent_is_killed(recipe: str, response: str) -> None:
    script = f"""
        import threading, time
        from fastgrpo.rewards import VerifierPool
        pool = VerifierPool({recipe + ":naughty"!r}, workers=2, timeout_s=1000, memory_limit_gib=1)
        threading.Thread(target=pool.score, args=([({response!r}, "42")] * 2,)).start()
        time.sleep(0.3)
        print("ready", flush=True)
        time.sleep(1000)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE)
    with parent, contextlib.ExitStack() as stack:
        stack.callback(parent.kill)
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        workers = workers_of(parent.pid)
        assert len(workers) == 2
        parent.kill()
        for pid in workers:
            wait_until_gone(pid)


def test_an_item_that_is_not_two_texts_is_refused(pool: VerifierPool) -> None:
    with pytest.raises(ValueError, match=r"item 1 must be .* got \(str, int\)"):
        pool.score([("", ""), ("\\boxed{42}", 42)])  # type: ignore[list-item]


def test_importing_the_package_imports_neither_torch_nor_sympy() -> None:
    code = "import sys, fastgrpo.rewards; sys.exit('torch' in sys.modules or 'sympy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_replacement_killed_before_anyone_heard_it_is_ready_costs_no_verdict(pool: VerifierPool) -> None:
    """Its last word lies unread in the pipe, and behind it the end."""
    pids = sorted(workers_of(os.getpid()))
    os.kill(pids[0], signal.SIGKILL)
    wait_until_gone(pids[0])
    pool.score(boxes(1))  # starts the replacement, and may not wait for it
    time.sleep(1.0)
    for pid in workers_of(os.getpid()):
        os.kill(pid, signal.SIGKILL)
        wait_until_gone(pid)
    assert pool.score(boxes(20)) == verdicts_on_boxes(20)
