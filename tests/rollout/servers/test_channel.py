"""The way to one server: the order of what is asked, what of it is a loss, and what a loss is called."""

import asyncio
import threading

import pytest

from fastgrpo.rollout.servers import channel as module
from fastgrpo.rollout.servers.channel import HttpChannel, Meeting
from fastgrpo.rollout.servers.client import Client
from fastgrpo.rollout.servers.pool import Received, Server, ServerFailure, ServerPool
from tests.rollout.servers.fake_channel import group
from tests.rollout.servers.fake_server import ALIVE, GENERATE, JOIN, RECEIVE, FakeServer, drawn_of, refusal
from tests.rollout.servers.until import LONG_S, until

MEETING = Meeting("127.0.0.1", 4711, 1, 2, 5.0, ())


@pytest.fixture(autouse=True)
def loop():
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield loop
    until(lambda: len(asyncio.all_tasks(loop)) == 0)  # a channel that is closed leaves nothing
    loop.call_soon_threadsafe(loop.stop)
    thread.join(LONG_S)
    loop.close()


@pytest.fixture(autouse=True)
def server(loop):
    with FakeServer("sesame") as server:
        yield server


@pytest.fixture
def connected(loop, pool_of, monkeypatch):
    """Admits the server of a pool of one, which is the fake one."""
    monkeypatch.setattr(module, "ALIVE_S", 0.05)

    def connect(fake: FakeServer, pool: ServerPool | None = None, *, keep_cache: bool = False) -> HttpChannel:
        pool = pool or pool_of(1)
        (server,) = pool.servers

        async def admit() -> HttpChannel:
            client = Client(fake.url, "sesame")
            pool.admit(server, lambda: HttpChannel(loop, client, pool, server, keep_cache), 1, 64)
            return server.channel

        return asyncio.run_coroutine_threadsafe(admit(), loop).result(LONG_S)

    return connect


@pytest.fixture
def drawing(pool_of, server, connected):
    """A pool whose server is there and has weights."""
    pool = pool_of(1)
    connected(server, pool)
    pool.synced(pool.servers[0], pool.servers[0].channel, 0)
    return pool


@pytest.fixture
def reasons(monkeypatch):
    """Why servers were lost."""
    found: list[str] = []
    monkeypatch.setattr("fastgrpo.rollout.servers.pool.log.warning", lambda text, message: found.append(message))
    return found


def of(pool: ServerPool) -> tuple[Server, HttpChannel]:
    return pool.servers[0], pool.servers[0].channel


def answer(pool: ServerPool, number: int) -> Received:
    """The server's answer to this sync."""
    found = pool.servers[0].received
    until(lambda: any(r.number == number for r in found))
    return next(r for r in found if r.number == number)


def salts(fake: FakeServer) -> list[str]:
    return [asked.body["cache_salt"] for asked in fake.of(GENERATE)]


# Drawing.


def test_responses_come_to_the_pool_by_their_requests(drawing, server):
    server.drawn = drawn_of([1, 2, 3])
    drawing.submit([group(0), group(1)])
    until(lambda: len(drawing.finished) == 4)
    assert all(len(response) == 3 for response in drawing.collect().values())


def test_a_request_that_is_cancelled_loses_its_connection_and_the_others_keep_theirs(drawing, server):
    server.hold(GENERATE)
    drawing.submit([group(0), group(1, prompt_tokens=2)])
    until(lambda: len(server.of(GENERATE)) == 4)
    drawing.cancel([2, 3])
    until(lambda: sum(asked.hung_up for asked in server.of(GENERATE)) == 2)
    assert all(asked.hung_up == (len(asked.body["token_ids"]) == 2) for asked in server.of(GENERATE))
    server.release(GENERATE)
    until(lambda: drawing.finished.keys() == {0, 1})
    assert drawing.num_lost == 0


def test_a_channel_that_is_closed_ends_what_is_being_drawn(drawing, server):
    server.hold(GENERATE)
    drawing.submit([group(0)])
    until(lambda: len(server.of(GENERATE)) == 2)
    drawing.close()
    until(lambda: all(asked.hung_up for asked in server.of(GENERATE)))
    until(lambda: server.num_connections == 0)
    drawing.check()


def test_a_closed_channel_asks_nothing_any_more(drawing, server):
    _, channel = of(drawing)
    channel.close()
    channel.draw(group(0))
    channel.cancel([0])
    until(lambda: channel._closed)
    assert server.of(GENERATE) == []


def test_keys_and_values_are_reused_until_weights_change(drawing, server):
    _, channel = of(drawing)
    for number in range(3):
        drawing.submit([group(2 * number)])
        drawing.submit([group(2 * number + 1)])
        until(lambda: drawing.num_drawing == 0)
        channel.join(MEETING)
        channel.receive(number, number + 1, with_checksums=False)
        assert answer(drawing, number).error == ""
    found = salts(server)
    assert [len(set(found[i : i + 4])) for i in (0, 4, 8)] == [1, 1, 1] and len(set(found)) == 3


def test_keys_and_values_of_another_process_are_not_reused(pool_of, server, connected):
    pool = pool_of(1)
    for position in range(2):
        channel = connected(server, pool)
        pool.synced(pool.servers[0], pool.servers[0].channel, 0)
        pool.submit([group(position)])
        until(lambda: len(pool.finished) == 2)
        pool.collect()
        pool.lose(pool.servers[0], channel, "it said nothing")
    assert len(set(salts(server))) == 2


def test_where_the_server_does_not_say_the_version_it_is_that_of_the_last_sync(drawing):
    _, channel = of(drawing)
    channel.join(MEETING)
    channel.receive(0, 17, with_checksums=False)
    answer(drawing, 0)
    drawing.submit([group(0)])
    until(lambda: len(drawing.finished) == 2)
    assert {response.policy_version for response in drawing.collect().values()} == {17}


def test_seconds_are_counted_in_which_it_had_something_to_draw(drawing, server):
    until(lambda: len(server.of(ALIVE)) >= 3)
    assert drawing.take_busy_s() == 0.0
    server.hold(GENERATE)
    drawing.submit([group(0)])
    until(lambda: drawing.servers[0].busy_s >= 0.15)
    server.release(GENERATE)
    until(lambda: len(drawing.finished) == 2)
    asked = len(server.of(ALIVE))
    until(lambda: len(server.of(ALIVE)) >= asked + 2)
    drawing.take_busy_s()
    until(lambda: len(server.of(ALIVE)) >= asked + 4)
    assert drawing.take_busy_s() == 0.0


# Losses.


def test_a_server_that_dies_is_lost_once_and_what_it_drew_is_taken_back(drawing, server, reasons):
    server.hold(GENERATE)
    drawing.submit([group(p) for p in range(10)])
    until(lambda: len(server.of(GENERATE)) == 20)
    server.die()
    until(lambda: drawing.present == [])
    assert drawing.num_lost == len(reasons) == 1 and len(drawing.waiting) == 10
    assert f"server {drawing.servers[0].url} was lost: " in reasons[0]


def test_a_server_that_has_nothing_to_draw_is_lost_when_it_dies(drawing, server, reasons):
    server.die()
    until(lambda: drawing.num_lost == 1)
    assert "Cannot connect to host" in reasons[0]


def test_a_server_whose_engine_does_not_answer_is_lost_after_its_time(pool_of, server, connected, reasons):
    pool = pool_of(1, stall_s=0.3)
    connected(server, pool)
    until(lambda: server.of(ALIVE))
    server.hold(ALIVE)
    until(lambda: pool.num_lost == 1)
    assert "it said nothing for" in reasons[0]
    until(lambda: server.of(ALIVE)[-1].hung_up)


def test_an_engine_that_answers_is_kept_however_long_a_response_takes(pool_of, server, connected):
    pool = pool_of(1, stall_s=0.3)
    connected(server, pool)
    pool.synced(pool.servers[0], pool.servers[0].channel, 0)
    server.hold(GENERATE)
    pool.submit([group(0)])
    asked = len(server.of(ALIVE))
    until(lambda: len(server.of(ALIVE)) > asked + 12)  # twice that time
    assert pool.num_lost == 0


@pytest.mark.parametrize("path", [GENERATE, ALIVE])
def test_a_refusal_is_a_loss_that_names_the_reason(drawing, server, reasons, path):
    server.refusals[path] = refusal(500, "EngineCore encountered an issue.\nSee stack trace above")
    drawing.submit([group(0)])
    until(lambda: drawing.num_lost)
    assert reasons[0].endswith("EngineCore encountered an issue.")


def test_a_response_that_the_server_aborted_is_a_loss(drawing, server, reasons):
    server.drawn = drawn_of([1], finish_reason="abort")
    drawing.submit([group(0)])
    until(lambda: drawing.num_lost)
    assert reasons[0].endswith("a request failed: it ended a request with 'abort'")
    assert not drawing.finished and len(drawing.waiting) == 1


@pytest.mark.parametrize(
    "answered",
    [
        "a proxy's page",
        {"token_ids": [1]},
        b"",
    ],
)
def test_an_answer_that_is_none_is_a_loss(drawing, server, reasons, answered):
    server.refusals[GENERATE] = 200, answered
    drawing.submit([group(0)])
    until(lambda: drawing.num_lost)
    assert "a request failed: its answer is no response: " in reasons[0]


def test_weights_of_another_trainer_lose_the_server(drawing, server, reasons):
    """By what it labels a response with, and without one by what it says of itself."""
    server.drawn = drawn_of([1], spans=((0, "theirs/3"),))
    drawing.submit([group(0)])
    until(lambda: drawing.num_lost)
    assert "another trainer has written its weights" in reasons[0] and not drawing.finished


def test_a_server_that_says_that_its_weights_are_anothers_is_lost(drawing, server, reasons):
    _, channel = of(drawing)
    channel.join(MEETING)
    channel.receive(0, 17, with_checksums=False)
    answer(drawing, 0)
    assert server.label.endswith("/17")
    server.label = "theirs/3"
    until(lambda: drawing.num_lost)
    assert "another trainer has written its weights" in reasons[0]


def test_a_request_that_every_server_would_refuse_ends_the_run(drawing, server):
    server.refusals[GENERATE] = refusal(400, "token id 999 is out of vocabulary")
    drawing.submit([group(0)])
    with pytest.raises(ServerFailure, match="server http://server0 refuses a request: token id 999"):
        drawing.wait(lambda: False, 10)


def test_an_error_that_is_no_text_is_a_loss_all_the_same(drawing, server, reasons):
    server.refusals[GENERATE] = 502, b"\xff\xfe\xb1"
    drawing.submit([group(0)])
    until(lambda: drawing.num_lost)
    assert "a request failed: " in reasons[0]


# Weights.


def test_a_sync_is_asked_for_when_the_server_has_met_the_sender(drawing, server):
    _, channel = of(drawing)
    server.hold(JOIN)
    channel.join(MEETING)
    channel.receive(5, 17, with_checksums=False)
    channel.receive(6, 18, with_checksums=False)
    until(lambda: server.of(JOIN))
    asked = len(server.of(ALIVE))
    until(lambda: len(server.of(ALIVE)) >= asked + 2)
    assert server.of(RECEIVE) == []
    server.release(JOIN)
    assert answer(drawing, 5) == Received(5, 17) and answer(drawing, 6) == Received(6, 18)
    assert server.of(JOIN)[0].body == {
        "host": "127.0.0.1", "port": 4711, "first_rank": 1, "size": 2, "timeout_s": 5.0, "manifest": [],
    }  # fmt: skip
    asked = [(a.body["number"], a.body["label"].rpartition("/")[2]) for a in server.of(RECEIVE)]
    assert asked == [(5, "17"), (6, "18")]


@pytest.mark.parametrize("keep_cache", [False, True])
def test_whether_keys_and_values_stay_is_said_with_every_sync(pool_of, server, connected, keep_cache):
    pool = pool_of(1)
    channel = connected(server, pool, keep_cache=keep_cache)
    channel.join(MEETING)
    channel.receive(0, 1, with_checksums=False)
    answer(pool, 0)
    assert server.of(RECEIVE)[0].body["keep_cache"] is keep_cache


def test_a_meeting_that_fails_is_the_reason_of_the_sync_and_the_next_may_succeed(drawing, server):
    _, channel = of(drawing)
    server.refusals[JOIN] = refusal(500, "Worker failed with error 'Timed out after 4 s'")
    channel.join(MEETING)
    channel.receive(0, 1, with_checksums=False)
    assert answer(drawing, 0).error == "Worker failed with error 'Timed out after 4 s'"
    assert server.of(RECEIVE) == [] and drawing.num_lost == 0
    del server.refusals[JOIN]
    channel.join(MEETING)
    channel.receive(1, 1, with_checksums=False)
    assert answer(drawing, 1).error == ""


def test_after_a_sync_that_failed_the_sender_must_be_met_again(drawing, server):
    _, channel = of(drawing)
    channel.join(MEETING)
    server.refusals[RECEIVE] = refusal(500, "Connection closed by peer")
    channel.receive(0, 1, with_checksums=False)
    assert answer(drawing, 0).error == "Connection closed by peer"
    del server.refusals[RECEIVE]
    channel.receive(1, 1, with_checksums=False)
    assert answer(drawing, 1).error == "Connection closed by peer"
    assert len(server.of(RECEIVE)) == 1


def test_a_sync_without_a_sender_says_so(drawing, server):
    _, channel = of(drawing)
    channel.receive(0, 1, with_checksums=False)
    assert answer(drawing, 0).error == "no sender of weights was named"
    assert server.of(RECEIVE) == []
