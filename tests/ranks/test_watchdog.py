"""Deadlines of real processes around a real store. What ends a process must do so whatever its threads hang in."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastgrpo.ranks.launch import free_port

ROOT = Path(__file__).parents[2]
LIMIT_S = 60.0  # for what should take some seconds

pytestmark = pytest.mark.timeout(2 * LIMIT_S)

# Each process says where it is on stdout, a line each.
PREAMBLE = """
import contextlib, ctypes, os, sys, time
from datetime import timedelta
import torch.distributed as dist
from fastgrpo.ranks import watchdog as module
from fastgrpo.ranks.watchdog import Watchdog
rank, num_ranks, port = (int(word) for word in sys.argv[1:])
limit = timedelta(seconds=1800)

def meet():
    return dist.TCPStore("127.0.0.1", port, num_ranks, rank == 0, limit)

def say(word):
    print(word, flush=True)
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    children = []
    port = free_port()

    def start_one(code: str, rank: int = 0, num_ranks: int = 1) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", PREAMBLE + textwrap.dedent(code), str(rank), str(num_ranks), str(port)]
        pipe = subprocess.PIPE
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        children.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True))
        return children[-1]

    yield start_one
    for child in children:
        child.kill()
        child.communicate()


def wait_for(child: "subprocess.Popen[str]", word: str) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        if line.strip() == word:
            return
    raise AssertionError(f"ended without saying {word!r}: {child.communicate()[1]}")


def ends(child: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit code and stderr."""
    _, said = child.communicate(timeout=LIMIT_S)
    return child.returncode, said


PHASES = """
    watchdog = Watchdog(meet(), rank, num_ranks)
    with watchdog.phase("update", None):
        say("update")
        {update}
    with watchdog.phase("sync", 2.0):
        say("sync")
        {sync}
    watchdog.close()
    say("done")
"""
WAIT = 'os.path.exists("/no") or time.sleep(1000)'


def stop(child: "subprocess.Popen[str]") -> None:
    time.sleep(0.5)  # so that it has told the others where it is
    os.kill(child.pid, signal.SIGSTOP)


def test_a_stopped_rank_and_a_late_one_end_those_that_wait_for_them_and_are_named(start: Start) -> None:
    children = [start(PHASES.format(update=WAIT if rank else "pass", sync=WAIT), rank, 3) for rank in range(3)]
    wait_for(children[1], "update")
    stop(children[1])
    code, said = ends(children[0])
    assert code == 1
    assert 'fastgrpo: rank 0 ends: 2 s in phase "sync", more than --deadline.sync_s 2\n' in said
    stopped = (
        f'missing: rank 1 \\(pid {children[1].pid} on .*\\), no sign of life, last seen [0-9]+ s in phase "update"\n'
    )
    assert re.search(stopped, said), said
    late = f'missing: rank 2 \\(pid {children[2].pid} on .*\\), which is alive, [0-9]+ s in phase "update"\n'
    assert re.search(late, said), said
    assert "Stacks of rank 0" in said and "most recent call first" in said and 'File "<string>"' in said
    assert children[1].poll() is None


def test_a_stopped_rank_that_hosts_the_store_ends_the_others_and_is_named(start: Start) -> None:
    children = [start(PHASES.format(update="pass" if rank else WAIT, sync=WAIT), rank, 2) for rank in range(2)]
    wait_for(children[0], "update")
    stop(children[0])
    code, said = ends(children[1])
    assert code == 1
    assert 'fastgrpo: rank 1 ends: 2 s in phase "sync", more than --deadline.sync_s 2\n' in said
    assert "the store, hosted by rank 0, does not answer" in said
    assert "Stacks of rank 1" in said and "most recent call first" in said
    assert children[0].poll() is None


@pytest.mark.slow
def test_a_killed_rank_gives_no_sign_of_life(start: Start) -> None:
    children = [start(PHASES.format(update="pass", sync=WAIT), rank, 2) for rank in range(2)]
    wait_for(children[1], "sync")
    time.sleep(0.5)
    children[1].kill()
    code, said = ends(children[0])
    assert code == 1
    assert "missing: rank 1" in said and "no sign of life" in said and 'in phase "sync"' in said


@pytest.mark.slow
def test_ranks_that_all_hang_in_a_phase_miss_nobody(start: Start) -> None:
    children = [start(PHASES.format(update="pass", sync=WAIT), rank, 2) for rank in range(2)]
    ended = [ends(child) for child in children]
    assert [code for code, _ in ended] == [1, 1]
    assert "every rank came to this phase and is alive: see the stacks" in ended[0][1]


def test_a_barrier_that_waits_for_a_stopped_rank_ends(start: Start) -> None:
    code = """
        store = meet()
        dist.init_process_group("gloo", store=store, rank=rank, world_size=num_ranks, timeout=limit)
        watchdog = Watchdog(store, rank, num_ranks)
        with watchdog.phase("update", None):
            dist.barrier()
            say("met")
            time.sleep(rank * 1000)
        with watchdog.phase("sync", 2.0):
            dist.barrier()
    """
    children = [start(code, rank, 2) for rank in range(2)]
    wait_for(children[1], "met")
    stop(children[1])
    code, said = ends(children[0])
    assert code == 1
    assert "missing: rank 1" in said and "no sign of life" in said
    assert "in barrier" in said  # of the stacks


@pytest.mark.parametrize("library", ["CDLL", "PyDLL"], ids=["lets go of the interpreter", "keeps the interpreter"])
def test_a_call_into_c_ends(start: Start, library: str) -> None:
    """A PyDLL keeps the interpreter lock, so that no Python thread can run, the watchdog's neither."""
    code = f"""
        module.BACKSTOP_S = 2.0
        with Watchdog.alone().phase("update", 1.0):
            ctypes.{library}(None).sleep(1000)
    """
    code, said = ends(start(code))
    assert code == 1
    assert "most recent call first" in said
    assert ('1 s in phase "update", more than --deadline.update_s 1' in said) == (library == "CDLL")


def test_one_process_needs_no_store(start: Start) -> None:
    code = """
        with Watchdog.alone().phase("rollout", 1.0, "--deadline.generate_s"):
            time.sleep(1000)
    """
    code, said = ends(start(code))
    assert code == 1
    assert 'fastgrpo: rank 0 ends: 1 s in phase "rollout", more than --deadline.generate_s 1\n' in said
    assert "it waited for no other rank" in said and "in phase" in said


def test_a_report_that_nobody_reads_does_not_keep_the_process(start: Start) -> None:
    code = """
        module.REPORT_S = 1.0
        os.set_blocking(2, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(2, bytes(1000))
        os.set_blocking(2, True)
        with Watchdog.alone().phase("update", 1.0):
            time.sleep(1000)
    """
    assert start(code).wait(LIMIT_S) == 1


def test_phases_that_end_in_time_do_nothing(start: Start) -> None:
    children = [start(PHASES.format(update="time.sleep(2.5)", sync="pass"), rank, 2) for rank in range(2)]
    for child in children:
        code, said = ends(child)
        assert code == 0 and "fastgrpo" not in said


def test_the_deadline_of_a_phase_that_was_left_is_void(start: Start) -> None:
    code = """
        watchdog = Watchdog.alone()
        for error in (ValueError, KeyboardInterrupt):
            with contextlib.suppress(error), watchdog.phase("update", 0.5):
                raise error
        with watchdog.phase("update", 0.5):
            pass
        time.sleep(1.5)
    """
    assert ends(start(code)) == (0, "")


def test_inner_deadlines_apply_to_the_inner_block_while_the_outer_goes_on_counting(start: Start) -> None:
    code = """
        watchdog = Watchdog.alone()
        with watchdog.phase("step", 3.0):
            with watchdog.phase("sync", 0.8):
                pass
            for _ in range(100):
                with watchdog.phase("update", 2.0):
                    time.sleep(0.5)
    """
    code, said = ends(start(code))
    assert code == 1
    assert '3 s in phase "step", more than --deadline.step_s 3' in said
    code = """
        watchdog = Watchdog.alone()
        with watchdog.phase("step", 1000.0), watchdog.phase("sync", 1.0):
            time.sleep(1000)
    """
    code, said = ends(start(code))
    assert code == 1
    assert '1 s in phase "sync", more than --deadline.sync_s 1' in said


def test_processes_that_are_started_in_a_phase_have_no_deadline(start: Start) -> None:
    code = """
        import subprocess
        watchdog = Watchdog(meet(), rank, num_ranks)
        with watchdog.phase("update", 1.5):
            pid = os.fork()
            if pid == 0:  # the threads are the parent's, and so is the connection to the store
                with watchdog.phase("sync", 0.1):
                    time.sleep(2.5)
                watchdog.close()
                os._exit(3)
            exits = os.fork() or sys.exit(4)  # as any program ends, through the interpreter's exit
            assert os.waitpid(exits, 0)[1] == 4 << 8
            subprocess.run(["true"], preexec_fn=lambda: None, check=True)
        assert os.waitpid(pid, 0)[1] == 3 << 8
        say("forked")
        with watchdog.phase("sync", 1.0):
            time.sleep(1000)
    """
    child = start(code)
    wait_for(child, "forked")
    code, said = ends(child)
    assert code == 1 and 'in phase "sync"' in said


@pytest.mark.parametrize("end", ["sys.exit(5)", "watchdog.close(); watchdog.close(); sys.exit(5)"])
def test_an_exit_in_a_phase_is_an_exit(start: Start, end: str) -> None:
    code = f"""
        watchdog = Watchdog(meet(), rank, num_ranks)
        with watchdog.phase("update", 100.0):
            say("update")
            time.sleep(0.2)
            {end}
    """
    children = [start(code, rank, 2) for rank in range(2)]
    assert [ends(child)[0] for child in children] == [5, 5]


def test_a_phase_costs_little(start: Start) -> None:
    code = """
        watchdog = Watchdog(meet(), rank, num_ranks)
        begun = time.perf_counter()
        for _ in range(1000):
            with watchdog.phase("update", 100.0):
                pass
        seconds = (time.perf_counter() - begun) / 1000
        watchdog.close()
        print(f"{1e6 * seconds:.0f} microseconds")
        sys.exit(seconds > 0.01)
    """
    children = [start(code, rank, 2) for rank in range(2)]
    assert [ends(child)[0] for child in children] == [0, 0]
