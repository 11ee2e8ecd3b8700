"""Engines that die, stop, lie or never come, played by threads that speak the protocol over real sockets."""

import contextlib
import multiprocessing.connection
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Client

import numpy as np
import psutil
import pytest
import torch

from fastgrpo.codec import encode
from fastgrpo.config import DeadlineConfig
from fastgrpo.rollout.generate import requests_of
from fastgrpo.rollout.remote import door
from fastgrpo.rollout.remote import messages as m
from fastgrpo.rollout.remote.channel import Channel
from fastgrpo.rollout.remote.engine_pool import EngineFailure, EnginePool
from fastgrpo.rollout.remote.weight_sender import WeightSender
from fastgrpo.rollout.weight_sync import manifest
from fastgrpo.types import Prompt, Request, Response, Sampling

LONG_S = 20.0  # nothing here takes so long unless it is broken
SAMPLING = Sampling(group_size=2, max_response_tokens=4)


def group(position: int) -> list[Request]:
    prompt = Prompt.of_ids(np.zeros(1, np.int32), position)
    return requests_of([prompt], SAMPLING, first_id=2 * position)


def response() -> Response:
    return Response(np.zeros(1, np.int32), np.zeros(1, np.float32), "stop", 0)


def until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG_S
    while not is_so():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.01)


class Peer:
    """An engine or a supervisor: notes what it is told and says what the test wants."""

    def __init__(self, pool: EnginePool, engine: int, *, is_supervisor: bool = False, name: str = "") -> None:
        process = name or f"{'supervisor' if is_supervisor else 'process'} {engine}"
        self.connection = m.connect(pool.address, m.Hello(engine, is_supervisor, process))
        self.heard: list = []
        threading.Thread(target=self._listen, daemon=True).start()
        if is_supervisor:
            until(lambda: engine in pool.supervisors)
        else:
            until(lambda: pool.engines[engine].process == process and pool.engines[engine].channel is not None)

    def _listen(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                self.heard.append(m.receive(self.connection, from_peer=False))

    def told(self, kind: type) -> list:
        return [message for message in self.heard if isinstance(message, kind)]

    @property
    def ids(self) -> list[int]:
        return [r.id for submit in self.told(m.Submit) for r in submit.requests]

    def finish(self, *ids: int) -> None:
        m.send(self.connection, m.Finished([(i, response()) for i in ids]))

    def die(self) -> None:
        with socket.socket(fileno=self.connection.fileno()) as end:
            end.shutdown(socket.SHUT_RDWR)
            end.detach()


@pytest.fixture
def pool_of():
    pools = []

    def make(
        num_engines: int = 2, *, pinned: bool = False, max_restarts: int = 3, max_sequences: int = 64, **deadlines
    ):
        limits = DeadlineConfig(**{"stall_s": LONG_S, "start_s": LONG_S, **deadlines})
        pools.append(EnginePool("127.0.0.1", num_engines, limits, max_restarts, max_sequences, pinned))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def ready(pool: EnginePool, engine: int, name: str = "", version: int = 0) -> Peer:
    peer = Peer(pool, engine, name=name)
    pool.synced(pool.engines[engine], version)
    return peer


def test_pinned_shares_are_drawn_whole_again_after_a_loss_and_count_once(pool_of):
    pool = pool_of(pinned=True)
    peers = [ready(pool, 0), ready(pool, 1)]
    pool.submit([group(p) for p in range(4)])
    until(lambda: peers[0].ids == [0, 1, 2, 3] and peers[1].ids == [4, 5, 6, 7])
    peers[0].finish(0, 1)
    until(lambda: len(pool.finished) == 2)
    assert pool.collect().keys() == {0, 1}
    peers[0].finish(2)
    until(lambda: 2 in pool.finished)
    peers[0].die()
    until(lambda: pool.engines[0].channel is None)
    again = ready(pool, 0, "its successor")
    until(lambda: again.ids == [0, 1, 2, 3])  # in the same company as before
    again.finish(0, 1, 2, 3)
    peers[1].finish(4, 5, 6, 7)
    until(lambda: len(pool.finished) == 6)
    assert pool.collect().keys() == {2, 3, 4, 5, 6, 7}
    assert pool.num_redrawn == 3 and pool.num_restarts == 1
    assert peers[1].ids == [4, 5, 6, 7]


def test_a_response_is_handed_on_at_once_and_once(pool_of):
    pool, told = pool_of(1, pinned=True), []
    peer = ready(pool, 0)
    row = {"tests": "[]"}
    requests = [[replace(r, prompt=replace(r.prompt, columns=row)) for r in group(p)] for p in range(3)]
    pool.submit(requests, on_finished=lambda request, response: told.append((request, response)))
    pool.cancel([4, 5])
    peer.finish(1, 4)  # one of them cancelled
    until(lambda: 1 in pool.finished)
    assert [request for request, _ in told] == [requests[0][1]] and told[0][1] is pool.finished[1]
    assert all(r.prompt.columns is None for submit in peer.told(m.Submit) for r in submit.requests)  # rows stay here
    peer.die()
    until(lambda: pool.engines[0].channel is None)
    ready(pool, 0, "its successor").finish(0, 1, 2)  # drawn again
    until(lambda: len(pool.finished) == 3)
    assert [request.id for request, _ in told] == [1, 0, 2]


def test_a_pinned_share_waits_for_its_own_engine(pool_of):
    pool = pool_of(pinned=True)
    there = ready(pool, 1)
    pool.submit([group(0), group(1)])
    until(lambda: there.ids == [2, 3])
    late = Peer(pool, 0)
    time.sleep(0.3)
    assert late.ids == []  # it has no weights yet
    pool.synced(pool.engines[0], 0)
    until(lambda: late.ids == [0, 1])


def test_a_pinned_engine_that_dies_after_its_work_draws_nothing_again(pool_of):
    pool = pool_of(1, pinned=True)
    peer = ready(pool, 0)
    pool.submit([group(0)])
    peer.finish(0, 1)
    until(lambda: len(pool.finished) == 2)
    peer.die()
    until(lambda: pool.engines[0].channel is None)
    again = ready(pool, 0, "its successor")
    pool.submit([group(1)])
    until(lambda: again.ids == [2, 3])


def test_groups_go_to_the_engine_with_the_fewest_requests_and_wait_where_all_are_full(pool_of):
    pool = pool_of(max_sequences=4)
    peers = [ready(pool, 0), ready(pool, 1)]
    pool.submit([group(p) for p in range(6)])
    until(lambda: peers[0].ids == [0, 1, 4, 5] and peers[1].ids == [2, 3, 6, 7])
    assert len(pool.waiting) == 2 and pool.num_drawing == 8
    peers[1].finish(2, 3)
    until(lambda: peers[1].ids == [2, 3, 6, 7, 8, 9])
    assert peers[0].ids == [0, 1, 4, 5]


def test_a_group_larger_than_an_engines_places_is_still_drawn(pool_of):
    pool = pool_of(1, max_sequences=1)
    peer = ready(pool, 0)
    pool.submit([group(0), group(1)])
    until(lambda: peer.ids == [0, 1])


def test_what_a_lost_engine_held_goes_to_the_others_first(pool_of):
    pool = pool_of(max_sequences=4)
    peers = [ready(pool, 0), ready(pool, 1)]
    pool.submit([group(p) for p in range(5)])
    until(lambda: len(peers[0].ids) == len(peers[1].ids) == 4)
    peers[0].finish(0)
    until(lambda: 0 in pool.finished)
    peers[0].die()
    until(lambda: pool.engines[0].channel is None)
    peers[1].finish(2, 3, 6, 7)
    until(lambda: peers[1].ids == [2, 3, 6, 7, 1, 4, 5])  # its rest, before what waited already
    peers[1].finish(1, 4, 5)
    until(lambda: peers[1].ids[-2:] == [8, 9])
    peers[1].finish(8, 9)
    until(lambda: len(pool.finished) == 10)
    assert pool.num_redrawn == 0 and pool.num_restarts == 1


def test_weights_that_reach_an_engine_lost_since_do_not_make_it_ready(pool_of):
    pool = pool_of(1)
    peer = Peer(pool, 0)
    peer.die()
    until(lambda: pool.engines[0].channel is None)
    pool.synced(pool.engines[0], 0)
    pool.submit([group(0)])
    again = ready(pool, 0, "its successor")
    until(lambda: again.ids == [0, 1])


def test_a_peer_stopped_in_the_middle_of_a_message_blocks_nobody(pool_of):
    """Half a frame, and then silence: its thread waits, and the others are served until it counts as dead."""
    pool = pool_of(stall_s=2.0)
    stopped, healthy = ready(pool, 0), ready(pool, 1)
    alive = threading.Event()
    threading.Thread(target=beat, args=(healthy, alive), daemon=True).start()
    frame = encode(m.Alive(0.0))
    half = struct.pack("!i", len(frame)) + frame[: len(frame) // 2]
    with socket.socket(fileno=stopped.connection.fileno()) as end:
        end.sendall(half)
        end.detach()
    pool.submit([group(0), group(1)])
    until(lambda: healthy.ids == [2, 3])
    healthy.finish(2, 3)
    until(lambda: len(pool.finished) == 2)
    until(lambda: pool.engines[0].channel is None)
    assert "engine 0 (process 0) was lost: it said nothing for" in pool.lost[0] and "--deadline.stall_s" in pool.lost[0]
    until(lambda: healthy.ids == [2, 3, 0, 1])
    alive.set()


def beat(peer: Peer, over: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while not over.wait(0.2):
            m.send(peer.connection, m.Alive(0.1))


def test_a_peer_that_does_not_read_blocks_neither_the_pool_nor_its_end():
    """More than its socket holds is said to it."""
    here, there = multiprocessing.connection.Pipe()
    ended = threading.Event()
    channel = Channel(here, lambda channel, message: ended.set() if message is None else None, "test")
    began = time.monotonic()
    for _ in range(50):
        channel.send(b"x" * 1_000_000)
    assert time.monotonic() - began < 5
    channel.close()
    assert ended.wait(LONG_S)
    channel.wait_until_sent(LONG_S)
    assert not channel._threads[1].is_alive()
    there.close()


def test_silence_loses_an_engine_and_a_word_a_second_keeps_it(pool_of):
    pool = pool_of(stall_s=1.5)
    silent, talking = ready(pool, 0), ready(pool, 1)
    supervisor = Peer(pool, 0, is_supervisor=True)
    alive = threading.Event()
    threading.Thread(target=beat, args=(talking, alive), daemon=True).start()
    until(lambda: bool(supervisor.told(m.Restart)))
    time.sleep(1.0)
    assert pool.engines[1].channel is not None and pool.num_restarts == 1
    assert silent.connection.poll(LONG_S)  # it was hung up on
    alive.set()


def test_a_stranger_with_a_wrong_secret_is_sent_away(pool_of):
    pool = pool_of(1)
    wrong = m.Address(pool.address.host, pool.address.port, b"no idea")
    with pytest.raises((multiprocessing.AuthenticationError, EOFError, OSError)):
        m.connect(wrong, m.Hello(0, False, "a stranger"))
    with socket.create_connection((pool.address.host, pool.address.port)) as web:
        web.sendall(b"GET / HTTP/1.1\r\n\r\n")
        web.settimeout(LONG_S)
        with contextlib.suppress(ConnectionResetError):
            while web.recv(4096):
                pass
    assert pool.present == [] and pool.lost == []
    assert ready(pool, 0) and len(pool.present) == 1


def test_somebody_who_says_nothing_at_the_door_keeps_nobody_out(pool_of):
    pool = pool_of(1)
    with socket.create_connection((pool.address.host, pool.address.port)):
        assert ready(pool, 0) and len(pool.present) == 1


def test_the_silent_and_the_slow_are_sent_away_and_leave_nothing(pool_of, monkeypatch):
    """More of them than may stand at the door, one of whom sends a byte now and then."""
    monkeypatch.setattr(door, "INTRODUCTION_S", 3600.0)
    pool = pool_of(1)
    before = threading.active_count(), psutil.Process().num_fds()
    strangers = [socket.create_connection((pool.address.host, pool.address.port)) for _ in range(150)]
    until(lambda: num_sent_away(strangers) == 150 - door.MAX_AT_THE_DOOR)
    assert ready(pool, 0)
    monkeypatch.setattr(door, "INTRODUCTION_S", 0.5)
    with contextlib.suppress(OSError):
        while num_sent_away(strangers) < 150:
            strangers[-1].send(b"\0")
            time.sleep(0.1)
    for stranger in strangers:
        stranger.close()
    until(lambda: threading.active_count() <= before[0] + 3 and psutil.Process().num_fds() <= before[1] + 4)


def num_sent_away(strangers: list[socket.socket]) -> int:
    """Of those who still listen: the pool's challenge comes first, and then the end."""
    for stranger in strangers:
        stranger.setblocking(False)

    def is_sent_away(stranger: socket.socket) -> bool:
        try:
            while stranger.recv(4096):
                pass
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    return sum(is_sent_away(stranger) for stranger in strangers)


class Planted:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("what", ["a pickle", "an encoded list", "no such engine", "half a message", "a huge length"])
def test_nothing_of_a_peer_that_knows_the_secret_is_executed(pool_of, tmp_path, monkeypatch, caplog, what):
    monkeypatch.setattr(door, "INTRODUCTION_S", 1.0)
    pool = pool_of(1)
    with Client((pool.address.host, pool.address.port), authkey=pool.address.secret) as connection:
        match what:
            case "a pickle":
                connection.send(Planted(tmp_path / "executed"))
            case "an encoded list":
                connection.send_bytes(encode([m.Hello(0, False, "me")]))
            case "no such engine":
                m.send(connection, m.Hello(1, False, "me"))
            case "half a message":
                os.write(connection.fileno(), struct.pack("!i", 100) + b"x")
            case "a huge length":
                os.write(connection.fileno(), struct.pack("!iQ", -1, 2**62))
        assert connection.poll(LONG_S)  # it was hung up on
    assert not (tmp_path / "executed").exists() and pool.present == [] and pool.lost == []
    assert ready(pool, 0)


def test_an_engine_that_sends_a_pickle_is_lost_and_nothing_of_it_executed(pool_of, tmp_path):
    pool = pool_of(1)
    peer = ready(pool, 0)
    peer.connection.send(Planted(tmp_path / "executed"))
    until(lambda: pool.num_restarts == 1)
    assert not (tmp_path / "executed").exists()


def test_more_losses_than_allowed_raise_with_the_engines_name_and_the_reason(pool_of):
    pool = pool_of(max_restarts=1)
    peers = [ready(pool, 0), ready(pool, 1)]
    m.send(peers[0].connection, m.Failed("CUDA error: out of memory"))
    until(lambda: pool.num_restarts == 1)
    pool.check()
    peers[1].die()
    with pytest.raises(EngineFailure, match=r"engine 1 \(process 1\) was lost: its process ended. 2 losses are more"):
        pool.wait(lambda: False, LONG_S)
    with pytest.raises(EngineFailure):
        pool.collect()
    assert "out of memory" in pool.lost[0]


def test_an_engine_that_is_never_ready_raises_after_its_time(pool_of):
    pool = pool_of(start_s=0.5)
    ready(pool, 0)
    with pytest.raises(EngineFailure, match=r"engine 1 was not ready after .* \(--deadline.start_s 0.5\)"):
        pool.wait(lambda: False, LONG_S)


def test_a_process_that_ends_before_it_called_is_started_again_until_there_were_too_many(pool_of):
    pool = pool_of(1, max_restarts=1)
    supervisor = Peer(pool, 0, is_supervisor=True)
    m.send(supervisor.connection, m.Exited("pid 7", "signal 9; it printed nothing"))
    until(lambda: len(supervisor.told(m.Restart)) == 1)
    m.send(supervisor.connection, m.Exited("pid 8", "exit code 1; ImportError: no such thing"))
    with pytest.raises(EngineFailure, match="pid 8 ended before it was ready: exit code 1; ImportError"):
        pool.wait(lambda: False, LONG_S)


def test_a_loss_is_counted_once_whoever_tells_of_it(pool_of):
    pool = pool_of(1)
    supervisor = Peer(pool, 0, is_supervisor=True)
    engine = ready(pool, 0, "pid 7")
    engine.die()
    m.send(supervisor.connection, m.Exited("pid 7", "signal 9"))
    until(lambda: bool(supervisor.told(m.Restart)))
    time.sleep(0.3)
    assert pool.num_restarts == 1 and len(supervisor.told(m.Restart)) == 1


def test_a_supervisor_that_goes_ends_the_run(pool_of):
    pool = pool_of(1)
    ready(pool, 0)
    Peer(pool, 0, is_supervisor=True).die()
    with pytest.raises(EngineFailure, match="the supervisor of engine 0 is gone"):
        pool.wait(lambda: False, LONG_S)


def test_an_engine_that_talks_nonsense_is_given_up(pool_of):
    pool = pool_of(1)
    m.send(ready(pool, 0).connection, "hello?")
    until(lambda: pool.engines[0].channel is None)
    assert "it sent str" in pool.lost[0]


def test_another_process_in_an_engines_place_takes_over(pool_of):
    pool = pool_of(1)
    first = ready(pool, 0)
    pool.submit([group(0)])
    until(lambda: first.ids == [0, 1])
    second = ready(pool, 0, "another")
    until(lambda: second.ids == [0, 1])
    with contextlib.suppress(OSError):
        first.finish(0, 1)  # too late: nobody listens
    second.finish(0, 1)
    until(lambda: len(pool.finished) == 2)
    assert pool.num_redrawn == 0


def test_what_is_cancelled_is_forgotten_wherever_it_is(pool_of):
    pool = pool_of(1, max_sequences=4)
    peer = ready(pool, 0)
    pool.submit([group(p) for p in range(4)])
    until(lambda: peer.ids == [0, 1, 2, 3])
    peer.finish(0)
    until(lambda: 0 in pool.finished)
    pool.cancel([0, 1, 4, 5])  # one finished, one being drawn, two waiting
    until(lambda: bool(peer.told(m.Cancel)))
    assert peer.told(m.Cancel)[0].ids == [1]
    peer.finish(1)  # it had ended before the word came
    peer.finish(2, 3)
    until(lambda: pool.finished.keys() == {2, 3})
    until(lambda: peer.ids[4:] == [6, 7])
    assert pool.collect().keys() == {2, 3}
    assert pool.num_redrawn == 0


def test_close_reaches_everybody_before_it_returns(pool_of):
    pool = pool_of(1)
    engine, supervisor = ready(pool, 0), Peer(pool, 0, is_supervisor=True)
    pool.close()
    until(lambda: bool(engine.told(m.End)) and bool(supervisor.told(m.End)))
    supervisor.die()
    time.sleep(0.3)
    pool.check()  # an end that was asked for is no failure


WEIGHTS = [("weight", torch.zeros(3))]


def sender_of(pool: EnginePool, timeout_s: float) -> WeightSender:
    return WeightSender(pool, manifest(WEIGHTS, torch.float32), torch.device("cpu"), timeout_s)


def test_an_engine_lost_before_a_sync_is_counted_once_and_not_waited_for(pool_of):
    pool = pool_of(1)
    peer = ready(pool, 0)
    engines = pool.present
    peer.die()
    until(lambda: pool.engines[0].channel is None)
    sender = sender_of(pool, LONG_S)
    began = time.monotonic()
    sender.send(engines, [WEIGHTS], 1, with_checksums=False)
    assert sender.replies() is None
    assert time.monotonic() - began < LONG_S / 2 and pool.num_restarts == 1


def test_an_engine_that_dies_in_a_sync_is_counted_once_and_not_waited_for(pool_of):
    pool = pool_of(1)
    peer = ready(pool, 0)
    sender = sender_of(pool, LONG_S)
    began = time.monotonic()
    sender.send(pool.present, [WEIGHTS], 1, with_checksums=False)
    until(lambda: bool(peer.told(m.Join)))
    peer.die()
    assert sender.replies() is None
    assert time.monotonic() - began < LONG_S / 2 and pool.num_restarts == 1


def test_of_a_sync_that_fails_only_the_silent_engine_is_given_up(pool_of):
    pool = pool_of()
    _, honest = ready(pool, 0), ready(pool, 1)
    sender = sender_of(pool, 2.0)
    sender.send(pool.present, [WEIGHTS], 1, with_checksums=False)
    until(lambda: bool(honest.told(m.Receive)))
    m.send(honest.connection, m.Received(honest.told(m.Receive)[0].number, 1, "the others did not come"))
    assert sender.replies() is None
    assert pool.engines[1].channel is not None and pool.num_restarts == 1
    assert "engine 0 (process 0) was lost: it took no part in a weight sync for 2 s (--deadline.sync_s)" in pool.lost[0]


def test_an_answer_to_an_earlier_sync_is_no_answer_to_this_one(pool_of):
    pool = pool_of(1)
    peer = ready(pool, 0)
    sender = sender_of(pool, 1.0)
    sender.send(pool.present, [WEIGHTS], 1, with_checksums=False)
    until(lambda: bool(peer.told(m.Receive)))
    m.send(peer.connection, m.Received(peer.told(m.Receive)[0].number - 1, 1))
    assert sender.replies() is None
    assert pool.num_restarts == 1


def test_an_engine_that_cannot_take_part_says_why_at_once_and_is_kept(pool_of):
    pool = pool_of(1)
    peer = Peer(pool, 0)
    weights = [("w", torch.zeros(2, 2))]
    sender = WeightSender(pool, manifest(weights, torch.float32), torch.device("cpu"), LONG_S)
    began = time.monotonic()

    def refuse() -> None:
        until(lambda: bool(peer.told(m.Receive)))
        m.send(peer.connection, m.Received(peer.told(m.Receive)[0].number, 1, "it has no weight w"))

    threading.Thread(target=refuse, daemon=True).start()
    sender.send(pool.present, [weights], 1, with_checksums=False)
    assert sender.replies() is None and "engine 0: it has no weight w" in sender.complaints
    assert time.monotonic() - began < LONG_S / 2 and pool.lost == []


def test_a_loss_is_of_a_process_and_does_not_meet_the_one_that_took_its_place(pool_of):
    pool = pool_of(1)
    supervisor, first = Peer(pool, 0, is_supervisor=True), ready(pool, 0)
    channel = pool.engines[0].channel
    first.die()
    until(lambda: pool.engines[0].channel is None)
    second = ready(pool, 0, name="second")
    pool.lose(pool.engines[0], channel, "silent")
    assert pool.num_restarts == 1 and pool.engines[0].channel is not None and second.connection is not None
    assert len(supervisor.told(m.Restart)) <= 1
