"""Servers are found, refused, waited for and lost from sight, by what stands at their addresses."""

import threading
from dataclasses import replace

import pytest

from fastgrpo.rollout.servers import watch as module
from fastgrpo.rollout.servers.pool import ServerFailure
from fastgrpo.rollout.servers.start import named_servers
from fastgrpo.rollout.servers.watch import ServerWatch, host_towards
from tests.rollout.servers.accounts import NEEDED, about
from tests.rollout.servers.fake_channel import group
from tests.rollout.servers.fake_server import ABOUT, GENERATE, FakeServer, refusal
from tests.rollout.servers.until import LONG_S, until


@pytest.fixture
def server():
    with FakeServer("sesame") as server:
        yield server


@pytest.fixture
def another():
    with FakeServer("sesame") as server:
        yield server


@pytest.fixture
def watching(pool_of, monkeypatch):
    """The pool of the servers that are named, each time they are asked for; others are looked at very often."""
    monkeypatch.setattr(module, "LOOK_S", 0.02)
    watches = []

    def watch(addresses, *, key: str = "sesame", needed=NEEDED, **limits):
        pool = pool_of(0, **limits)
        watches.append(ServerWatch(pool, addresses, key, needed, keep_cache=False))
        return pool

    yield watch
    for found in watches:
        found._pool.close()
        found.close()
        assert not found._thread.is_alive()


@pytest.fixture
def warnings(monkeypatch):
    found: list[str] = []
    monkeypatch.setattr(module.log, "warning", lambda text, *words: found.append(text % words))
    return found


def begun(pool, url: str):
    """The same pool, once the server at this address has weights: then the run has begun."""
    until(lambda: [s.url for s in pool.present] == [url])
    pool.synced(pool.present[0], pool.present[0].channel, 0)
    return pool


def urls(servers) -> list[str]:
    return [server.url for server in servers]


# Whom a run takes.


def test_a_server_that_fits_is_admitted_as_it_says_it_is(watching, server, another):
    another.about = about(tensor_parallel=4, max_sequences=9).to_json()
    pool = watching(lambda: [server.url, another.url])
    until(lambda: len(pool.present) == 2)
    assert urls(pool.servers) == [server.url, another.url]
    assert [(s.num_workers, s.max_sequences) for s in pool.servers] == [(1, 64), (4, 9)]
    pool.synced(pool.servers[0], pool.servers[0].channel, 0)
    pool.submit([group(0)])
    until(lambda: len(pool.finished) == 2)
    assert {asked.headers["Authorization"] for asked in server.asked} == {"Bearer sesame"}


UNFIT = [
    ({"key": "another"}, "it wants another key: put it into the environment as VLLM_API_KEY, or name"),
    *[
        ({"refusals": {ABOUT: refusal(status, "no such route")}}, "it has no routes for a trainer: start it with")
        for status in (403, 404, 405)
    ],
    ({"about": {"vllm": "0.32.0"}}, "it runs another version of fastgrpo: .*missing"),
    ({"about": about(layers=3).to_json()}, "it serves another model, /models/tiny: its layers is 3"),
    ({"about": about(dtype="bfloat16").to_json()}, "it computes in bfloat16, this run needs float32: start it with"),
    ({"about": about(backend="").to_json()}, "its weights cannot be written, its backend of weight transfer is none"),
    ({"about": about(max_model_len=127).to_json()}, "it takes sequences of 127 tokens, this run needs 128: start it"),
]


@pytest.mark.parametrize("what, why", UNFIT, ids=range(len(UNFIT)))
def test_one_that_will_never_do_ends_a_run_that_has_not_begun(watching, server, another, what, why):
    vars(another).update(what)
    pool = watching(lambda: [server.url, another.url])
    with pytest.raises(ServerFailure, match=f"^server {another.url}: {why}"):
        pool.wait(lambda: False, LONG_S)


@pytest.mark.parametrize("what, why", UNFIT, ids=range(len(UNFIT)))
def test_one_that_will_never_do_is_waited_for_where_the_run_has_begun(watching, server, another, warnings, what, why):
    named, fits = [server.url], vars(another).copy()
    pool = begun(watching(lambda: list(named)), server.url)
    vars(another).update(what)
    named.append(another.url)
    until(lambda: len(another.of(ABOUT)) >= 3)
    assert [text.startswith(f"fastgrpo: waiting for server {another.url}: ") for text in warnings] == [True]  # once
    vars(another).update({name: {} if name == "refusals" else fits[name] for name in what})
    until(lambda: len(pool.present) == 2)
    pool.check()


def test_what_a_server_must_do_is_this_runs_affair(watching, server):
    pool = watching(lambda: [server.url], needed=replace(NEEDED, sequence_tokens=129))
    with pytest.raises(ServerFailure, match="this run needs 129"):
        pool.wait(lambda: False, LONG_S)


# Who is waited for.


def test_a_server_that_answers_late_is_admitted_when_it_does(watching, server, warnings):
    server.die()
    pool = watching(lambda: [server.url])
    until(lambda: warnings)
    assert f"waiting for server {server.url}: Cannot connect to host" in warnings[0] and pool.present == []
    server.come()
    until(lambda: urls(pool.present) == [server.url])
    until(lambda: warnings[-1] == f"fastgrpo: server {server.url} is there")


@pytest.mark.parametrize("answer", [refusal(500, "EngineDeadError"), refusal(503, "starting"), refusal(502, "a proxy")])
def test_a_server_that_is_not_ready_is_waited_for(watching, server, warnings, answer):
    server.refusals[ABOUT] = answer
    pool = watching(lambda: [server.url])
    until(lambda: len(server.of(ABOUT)) >= 3)
    pool.check()
    assert pool.present == [] and len(warnings) == 1 and answer[1]["error"]["message"] in warnings[0]
    del server.refusals[ABOUT]
    until(lambda: urls(pool.present) == [server.url])


def test_one_that_hangs_keeps_nobody_from_the_others(watching, server, another):
    server.hold(ABOUT)
    pool = watching(lambda: [server.url, another.url])
    until(lambda: urls(pool.present) == [another.url])
    server.release(ABOUT)
    until(lambda: len(pool.present) == 2)


def test_where_nobody_comes_the_run_ends_after_its_time(watching, server):
    server.die()
    pool = watching(lambda: [server.url], start_s=0.2)
    with pytest.raises(ServerFailure, match=f"no server was there for .*: {server.url}"):
        pool.wait(lambda: False, LONG_S)


def test_a_server_that_was_lost_is_looked_for_until_it_is_there_again(watching, server):
    pool = begun(watching(lambda: [server.url]), server.url)
    first = pool.servers[0].channel
    pool.submit([group(0)])
    until(lambda: len(pool.finished) == 2)
    server.hold(GENERATE)
    pool.submit([group(1)])
    until(lambda: len(server.of(GENERATE)) == 4)
    server.die()
    until(lambda: pool.present == [])
    server.release(GENERATE)
    server.come()
    until(lambda: pool.unsynced)
    assert pool.servers[0].channel is not first and pool.num_lost == 1
    pool.synced(pool.servers[0], pool.servers[0].channel, 1)
    until(lambda: len(pool.finished) == 4)


# Who is named.


def test_a_file_of_addresses_that_changes_brings_servers_and_takes_them_away(watching, server, another, tmp_path):
    file = tmp_path / "servers"
    file.write_text(server.url)
    pool = begun(watching(lambda: named_servers((str(file),))), server.url)
    file.write_text(f"{server.url}\n{another.url}/\n")
    until(lambda: urls(pool.present) == [server.url, another.url])
    pool.synced(pool.servers[1], pool.servers[1].channel, 0)
    server.hold(GENERATE)
    pool.submit([group(0)])
    until(lambda: len(server.of(GENERATE)) == 2)
    file.write_text(another.url)
    until(lambda: len(pool.finished) == 2)  # drawn by the other
    assert urls(pool.servers) == [another.url] and pool.num_lost == 0
    until(lambda: all(asked.hung_up for asked in server.of(GENERATE)))
    server.release(GENERATE)
    file.write_text(f"{another.url}\n{server.url}")
    until(lambda: urls(pool.present) == [another.url, server.url])


def test_a_server_that_is_not_named_any_more_is_not_looked_for(watching, server, another):
    server.die()
    named = [server.url, another.url]
    pool = watching(lambda: list(named))
    until(lambda: urls(pool.present) == [another.url])
    named.remove(server.url)
    until(lambda: urls(pool.servers) == [another.url])
    server.come()
    asked = len(server.asked)
    named.append(server.url)
    until(lambda: len(pool.present) == 2)
    assert len(server.of(ABOUT)) == asked + 1  # by the one that was told to look


def nonsense(file) -> None:
    file.write_text("half an addr")


def nothing(file) -> None:
    file.write_text("")


def gone(file) -> None:
    file.unlink()


@pytest.mark.parametrize("happens", [nonsense, nothing, gone])
def test_a_file_that_cannot_be_read_leaves_the_servers_as_they_are(watching, server, tmp_path, warnings, happens):
    file = tmp_path / "servers"
    file.write_text(server.url)
    looks = []

    def addresses() -> list[str]:
        looks.append(1)
        return named_servers((str(file),))

    pool = begun(watching(addresses), server.url)
    happens(file)
    seen = len(looks)
    until(lambda: len(looks) >= seen + 4)
    assert urls(pool.present) == [server.url] and len(warnings) == 1 and "so they stay as they were: " in warnings[0]
    file.write_text(f"{server.url}\nhttp://127.0.0.1:1")
    until(lambda: len(pool.servers) == 2)


# Its end.


def test_the_end_closes_what_is_open_and_leaves_no_thread(pool_of, server, another):
    another.die()
    server.hold(GENERATE)
    pool = pool_of(0)
    watch = ServerWatch(pool, lambda: [server.url, another.url], "sesame", NEEDED, keep_cache=False)
    begun(pool, server.url).submit([group(0)])
    until(lambda: len(server.of(GENERATE)) == 2)
    before = threading.active_count()
    pool.close()
    watch.close()
    assert threading.active_count() < before
    until(lambda: all(asked.hung_up for asked in server.of(GENERATE)))
    pool.check()


def test_the_host_is_this_machines_address_on_the_way_to_a_server():
    assert host_towards(["http://127.0.0.1:8000"]) == host_towards(["http://127.0.0.1"]) == "127.0.0.1"
    with pytest.raises(ValueError, match=r"--rollout.servers: http://nobody.invalid:8000: "):
        host_towards(["http://nobody.invalid:8000"])


def test_one_server_elsewhere_is_enough_to_leave_loopback(monkeypatch):
    ways = {"localhost": "127.0.0.1", "beside": "::1", "far": "10.77.0.1"}
    monkeypatch.setattr("fastgrpo.rollout.servers.watch.address_towards", lambda host, port: ways[host])
    assert host_towards(["http://localhost:8000", "http://beside", "http://far:8000"]) == "10.77.0.1"
    assert host_towards(["http://beside", "http://localhost:8000"]) == "::1"


def test_one_server_by_two_names_is_one(watching, server, monkeypatch):
    said = []
    monkeypatch.setattr(module.log, "warning", lambda text, *values: said.append(text % values))
    other = server.url.replace("127.0.0.1", "localhost")
    pool = watching(lambda: [server.url, other])
    until(lambda: any("by another name" in line for line in said))
    assert len(pool.present) == 1 and pool.num_lost == 0
