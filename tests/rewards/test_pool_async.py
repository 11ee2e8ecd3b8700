"""Async rewards in the pool: many at once, each under its own limit, and none lost to another's fault."""

import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastgrpo.rewards import Verdict, VerifierPool

RECIPE = """
    import asyncio, os, sys, time

    running = most = 0

    async def reward(response, answer):
        global running, most
        word, _, value = response.partition(" ")
        running += 1
        most = max(most, running)
        try:
            return await globals()[word](value)
        finally:
            running -= 1

    async def nap(value):
        await asyncio.sleep(float(value))
        return float(value)

    async def at_once(value):
        return most

    async def number_running(value):
        await asyncio.sleep(0.3)
        return running

    async def complain(value):
        await asyncio.sleep(0)
        raise KeyError(value)

    async def give_up(value):
        raise TimeoutError("the judge's own")

    async def leave(value):
        os._exit(0)

    async def block(value):
        time.sleep(1000)

    async def block_once(value):
        try:
            os.close(os.open(value, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return True
        time.sleep(1000)

    async def hoard(value):
        await asyncio.sleep(0.1)
        raise MemoryError

    async def say_exit(value):
        sys.exit(3)
"""

TIMEOUT, DIED, RAISED = Verdict(False, "timeout"), Verdict(False, "died"), Verdict(False, "raised")


def number(score: float) -> Verdict:
    return Verdict(None, score=score)


@pytest.fixture(scope="module")
def name(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recipe") / "recipe.py"
    path.write_text(textwrap.dedent(RECIPE))
    return f"{path}:reward"


@pytest.fixture(scope="module")
def pool(name: str) -> Iterator[VerifierPool]:
    """One pool for all: each test finds it as the test before left it."""
    with VerifierPool(name, 1, timeout_s=1.0, memory_limit_gib=1, self_test=(), concurrency=8) as pool:
        yield pool


def judge(pool: VerifierPool, *responses: str) -> list[Verdict]:
    return pool.score([(response, "") for response in responses])


def test_verdicts_that_come_in_any_order_are_put_in_that_of_the_responses(pool: VerifierPool) -> None:
    naps = ["nap 0.2", "nap 0.05", "nap 0.1", "nap 0"] * 2
    assert judge(pool, *naps) == [number(float(nap.split()[1])) for nap in naps]


def test_as_many_are_judged_at_once_as_are_allowed_and_no_more(pool: VerifierPool) -> None:
    judge(pool, *["nap 0.05"] * 40)
    assert judge(pool, "at_once") == [number(8.0)]


def test_jobs_of_several_threads_are_judged_at_the_same_time(pool: VerifierPool) -> None:
    futures = [pool.submit([("number_running", "")]) for _ in range(4)]
    assert {future.result()[0].score for future in futures} == {4.0, 3.0, 2.0, 1.0}


def test_several_processes_share_what_they_have_room_for(name: str) -> None:
    with VerifierPool(name, 2, timeout_s=5, memory_limit_gib=1, self_test=(), concurrency=4) as pool:
        found = judge(pool, *["number_running"] * 8)
    assert sorted(verdict.score or 0 for verdict in found) == [1, 1, 2, 2, 3, 3, 4, 4]


def test_each_has_its_own_limit_of_time_and_its_own_error(pool: VerifierPool) -> None:
    found = judge(pool, "nap 30", "complain needle", "nap 0.1", "give_up", "say_exit")
    assert found == [TIMEOUT, RAISED, number(0.1), RAISED, RAISED]
    judge(pool, "complain needle")
    assert pool.last_error.startswith("KeyError: 'needle' (")


def test_a_loop_that_hangs_costs_one_verdict(pool: VerifierPool) -> None:
    found = judge(pool, *["nap 0.3"] * 3, "block", *["nap 0.3"] * 3)
    assert found == [*[number(0.3)] * 3, TIMEOUT, *[number(0.3)] * 3]


def test_a_response_that_hung_once_among_others_is_judged_again(pool: VerifierPool, tmp_path: Path) -> None:
    assert judge(pool, "nap 0.3", f"block_once {tmp_path / 'flag'}") == [number(0.3), Verdict(True)]


def test_a_process_that_dies_costs_one_verdict(pool: VerifierPool) -> None:
    found = judge(pool, *["nap 0.1"] * 3, "leave", *["nap 0.1"] * 3)
    assert found == [*[number(0.1)] * 3, DIED, *[number(0.1)] * 3]


def test_what_runs_beside_one_that_is_out_of_memory_is_judged_again(pool: VerifierPool) -> None:
    assert judge(pool, "nap 0.3", "hoard", "nap 0.2") == [number(0.3), RAISED, number(0.2)]


def test_closing_waits_for_those_that_have_begun(name: str) -> None:
    pool = VerifierPool(name, 1, timeout_s=5, memory_limit_gib=1, self_test=(), concurrency=2)
    futures = [pool.submit([("nap 0.5", "")]) for _ in range(4)]
    begun = threading.Event()
    threading.Timer(0.2, begun.set).start()
    begun.wait()
    pool.close()
    assert [future.cancelled() for future in futures] == [False, False, True, True]
    assert futures[0].result() == futures[1].result() == [number(0.5)]
