"""Servers that die, stay silent or never come, played by channels without sockets."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from fastgrpo.rollout.servers.pool import Received, ServerFailure
from tests.rollout.servers.fake_channel import SAMPLING, FakeChannel, group, ready
from tests.rollout.servers.until import LONG_S, until


def both_ready(pool, **about: int) -> tuple[FakeChannel, FakeChannel]:
    first, second = pool.servers
    return ready(pool, first, **about), ready(pool, second, **about)


# Who draws what.


def test_groups_go_to_the_server_with_the_fewest_tokens_before_it_and_wait_where_all_are_full(pool_of):
    pool = pool_of(max_sequences=4)
    first, second = both_ready(pool)
    pool.submit([group(p) for p in range(6)])
    assert (first.ids, second.ids) == ([0, 1, 4, 5], [2, 3, 6, 7])
    assert len(pool.waiting) == 2 and pool.num_drawing == 8
    second.finish(2)
    assert pool.num_drawing == 7 and len(pool.waiting) == 2  # a group is not taken apart
    second.finish(3)
    assert second.ids == [2, 3, 6, 7, 8, 9] and first.ids == [0, 1, 4, 5]


def test_tokens_count_and_not_requests(pool_of):
    pool = pool_of()
    first, second = both_ready(pool)
    pool.submit([group(0, prompt_tokens=100)])
    pool.submit([group(1), group(2), group(3, sampling=replace(SAMPLING, max_response_tokens=500)), group(4)])
    assert first.ids == [0, 1, 8, 9] and second.ids == [2, 3, 4, 5, 6, 7]


def test_a_server_takes_as_many_as_it_has_places_for(pool_of):
    pool = pool_of(max_sequences=8)
    small, large = ready(pool, pool.servers[0], max_sequences=2), ready(pool, pool.servers[1], max_sequences=100)
    pool.submit([group(p) for p in range(10)])
    assert len(small.ids) == 2 and len(large.ids) == 8


def test_a_group_larger_than_a_servers_places_is_still_drawn(pool_of):
    pool = pool_of(1, max_sequences=1)
    channel = ready(pool, pool.servers[0])
    pool.submit([group(0), group(1)])
    assert channel.ids == [0, 1]


def test_what_is_first_goes_before_those_that_wait_and_in_its_order(pool_of):
    pool = pool_of(1, max_sequences=2)
    channel = ready(pool, pool.servers[0])
    pool.submit([group(0), group(1)])
    pool.submit([group(2), group(3)], first=True)
    for ids in ((0, 1), (4, 5), (6, 7), (2, 3)):
        assert tuple(channel.ids[-2:]) == ids
        channel.finish(*ids)


def test_a_server_without_weights_draws_nothing_and_then_what_waited(pool_of):
    pool = pool_of(1)
    channel = FakeChannel(pool, pool.servers[0])
    pool.submit([group(0)])
    assert channel.ids == [] and pool.unsynced == pool.present == pool.servers and not pool.has_begun
    pool.synced(pool.servers[0], pool.servers[0].channel, 0)
    assert channel.ids == [0, 1] and pool.unsynced == [] and pool.has_begun


# What comes back.


def test_a_response_is_handed_on_at_once_and_once(pool_of):
    pool, told = pool_of(1), []
    channel = ready(pool, pool.servers[0])
    groups = [group(p) for p in range(3)]
    pool.submit(groups, on_finished=lambda request, response: told.append((request, response)))
    pool.cancel([4, 5])
    channel.finish(1, 4)  # one of them cancelled
    assert [request for request, _ in told] == [groups[0][1]] and told[0][1] is pool.finished[1]
    channel.finish(1)
    assert len(told) == 1 and pool.num_redrawn == 2
    channel.die()
    ready(pool, pool.servers[0]).finish(0, 2)
    assert [request.id for request, _ in told] == [1, 0, 2]
    assert pool.collect().keys() == {0, 1, 2} and pool.collect() == {}


def test_a_wait_ends_with_the_response_that_it_is_for(pool_of):
    pool = pool_of(1)
    channel = ready(pool, pool.servers[0])
    pool.submit([group(0)])
    assert not pool.wait(lambda: bool(pool.finished), 0.01)
    threading.Timer(0.05, channel.finish, [0]).start()
    began = time.monotonic()
    assert pool.wait(lambda: bool(pool.finished), LONG_S) and time.monotonic() - began < LONG_S / 2


def test_what_is_cancelled_is_forgotten_wherever_it_is(pool_of):
    pool = pool_of(1, max_sequences=4)
    channel = ready(pool, pool.servers[0])
    pool.submit([group(p) for p in range(4)])
    assert channel.ids == [0, 1, 2, 3]
    channel.finish(0)
    pool.cancel([0, 1, 4, 5])  # one finished, one being drawn, two waiting
    assert channel.cancelled == [1] and channel.ids[4:] == [6, 7]
    channel.finish(2, 3)
    assert pool.collect().keys() == {2, 3} and pool.num_redrawn == 0 and pool.num_drawing == 2


def test_seconds_of_drawing_are_the_mean_over_the_servers_and_are_taken_once(pool_of):
    pool = pool_of()
    first, second = both_ready(pool)
    first.say(1.0)
    first.say(2.0)
    second.say(1.0)
    assert pool.take_busy_s() == 2.0 and pool.take_busy_s() == 0.0


# Losses.


def test_what_a_lost_server_held_goes_to_the_others_first(pool_of):
    pool = pool_of(max_sequences=4)
    first, second = both_ready(pool)
    pool.submit([group(p) for p in range(5)])
    assert len(first.ids) == len(second.ids) == 4
    first.finish(0)
    first.die()
    assert first.is_closed and pool.present == [pool.servers[1]]
    second.finish(2, 3)
    assert second.ids == [2, 3, 6, 7, 1]  # its rest, before what waited already
    second.finish(6, 7)
    assert second.ids == [2, 3, 6, 7, 1, 4, 5]
    second.finish(1, 4, 5)
    second.finish(8, 9)
    assert len(pool.finished) == 10 and pool.num_redrawn == 0 and pool.num_lost == 1


def test_a_lost_server_that_is_there_again_draws_the_rest_and_nothing_twice(pool_of):
    pool = pool_of(1)
    channel = ready(pool, pool.servers[0])
    pool.submit([group(0), group(1)])
    channel.finish(0, 1, 2)
    channel.die()
    assert pool.num_drawing == 0
    assert ready(pool, pool.servers[0]).ids == [3]


def test_weights_that_reach_a_server_lost_since_do_not_make_it_ready(pool_of):
    pool = pool_of(1)
    lost = FakeChannel(pool, pool.servers[0])
    lost.die()
    pool.synced(pool.servers[0], lost, 0)
    pool.submit([group(0)])
    assert pool.num_drawing == 0 and not pool.has_begun
    again = FakeChannel(pool, pool.servers[0])
    pool.synced(pool.servers[0], lost, 0)  # nor the process that took its place
    assert again.ids == [] and pool.unsynced == pool.servers
    pool.synced(pool.servers[0], pool.servers[0].channel, 0)
    assert again.ids == [0, 1]


def test_silence_loses_a_server_and_a_word_keeps_it(pool_of):
    pool = pool_of(stall_s=0.4)
    _, talking = both_ready(pool)
    told = []
    pool.on_lost = lambda server: told.append(server.url)
    until(lambda: talking.say() or pool.num_lost)
    assert told == ["http://server0"] and pool.present == [pool.servers[1]]


def test_responses_and_answers_are_words_too(pool_of):
    pool = pool_of(1)
    channel, server = ready(pool, pool.servers[0]), pool.servers[0]
    pool.submit([group(0)])
    channel.receive(0, 1, with_checksums=False)
    for speak in (channel.say, lambda: channel.finish(0), channel.received):
        server.last_heard = 0.0
        speak()
        assert server.last_heard > 0


def test_in_a_sync_silence_is_judged_by_the_sync_alone(pool_of):
    pool = pool_of(stall_s=0.1)
    both_ready(pool)
    pool.set_syncing(pool.servers[0], True)
    until(lambda: pool.num_lost)
    assert pool.present == [pool.servers[0]]
    pool.servers[0].last_heard = 0.0
    pool.set_syncing(pool.servers[0], False)
    assert pool.servers[0].last_heard > 0.0  # its silence begins anew
    until(lambda: pool.num_lost == 2)


def test_a_loss_is_told_once_whoever_tells_of_it(pool_of):
    pool, told = pool_of(1), []
    pool.on_lost = told.append
    channel = ready(pool, pool.servers[0])
    channel.die()
    channel.die("a request failed")
    assert told == pool.servers and pool.num_lost == 1


def test_a_loss_is_of_a_process_and_does_not_meet_the_one_that_took_its_place(pool_of):
    pool = pool_of(1)
    first = ready(pool, pool.servers[0])
    first.die()
    second = ready(pool, pool.servers[0])
    first.die("silent")
    assert pool.num_lost == 1 and pool.servers[0].channel is second and not second.is_closed


def test_nothing_counts_that_a_process_says_which_was_replaced(pool_of):
    pool = pool_of(1)
    server = pool.servers[0]
    first = ready(pool, server)
    pool.submit([group(0)])
    first.die()
    second = ready(pool, server)
    assert second.ids == [0, 1]
    server.last_heard = 0.0
    first.finish(0, 1)
    first.say(7.0)
    pool.on_received(server, first, Received(0, 1))
    assert not pool.finished and not server.received and pool.take_busy_s() == 0 and server.last_heard == 0
    second.finish(0, 1)
    assert len(pool.finished) == 2 and pool.num_redrawn == 0


def test_a_process_that_takes_anothers_place_has_not_answered_what_that_was_asked(pool_of):
    pool = pool_of(1)
    server = pool.servers[0]
    first = ready(pool, server)
    pool.on_received(server, first, Received(0, 1))
    first.die()
    FakeChannel(pool, server)
    assert not server.received and server.version is None


def test_more_losses_than_allowed_raise_with_the_servers_address_and_the_reason(pool_of):
    pool = pool_of(max_losses=1)
    told = []
    pool.on_lost = told.append
    first, second = both_ready(pool)
    first.die("CUDA error: out of memory")
    pool.check()
    threading.Timer(0.05, second.die).start()
    why = r"server http://server1 was lost: its connection ended. 2 losses are more than --rollout.max_engine_restarts"
    with pytest.raises(ServerFailure, match=why):
        pool.wait(lambda: False, LONG_S)
    for ask in (pool.check, pool.collect, lambda: pool.wait(lambda: True, 0.0)):
        with pytest.raises(ServerFailure, match=why):
            ask()
    assert told == [pool.servers[0]]  # a run that has ended looks for nobody


def test_without_a_limit_any_number_may_be_lost(pool_of):
    pool = pool_of(1, max_losses=None)
    for _ in range(50):
        ready(pool, pool.servers[0]).die()
    pool.check()
    assert pool.num_lost == 50


def nobody_came(pool) -> None:
    pass


def all_went(pool) -> None:
    ready(pool, pool.servers[0]).die()


def all_were_removed(pool) -> None:
    ready(pool, pool.servers[0])
    pool.remove(pool.servers[0])
    pool.remove(pool.servers[0])


@pytest.mark.parametrize(
    "happened, who",
    [
        (nobody_came, "http://server0, http://server1"),
        (all_went, "http://server0, http://server1"),
        (all_were_removed, "none is named"),
    ],
)
def test_when_nobody_is_there_for_too_long_it_raises(pool_of, happened: Callable[..., None], who):
    pool = pool_of(start_s=0.1)
    happened(pool)
    with pytest.raises(ServerFailure, match=rf"no server was there for .* s \(--deadline.start_s 0.1\): {who}"):
        pool.wait(lambda: False, LONG_S)


def test_one_server_is_enough_however_long_the_others_need(pool_of):
    pool = pool_of(start_s=0.1)
    ready(pool, pool.servers[1])
    assert not pool.wait(lambda: False, 0.3)


def test_the_first_failure_is_the_one_that_is_told(pool_of):
    pool = pool_of()
    pool.fail("it wants another key")
    pool.fail("no server was there")
    with pytest.raises(ServerFailure, match="it wants another key"):
        pool.check()


# Coming and going.


def test_what_a_removed_server_draws_is_drawn_elsewhere_and_is_no_loss(pool_of):
    pool, told = pool_of(), []
    pool.on_lost = told.append
    first, second = both_ready(pool)
    pool.submit([group(0), group(1)])
    pool.remove(pool.servers[0])
    assert first.is_closed and second.ids == [2, 3, 0, 1]
    assert [s.url for s in pool.servers] == ["http://server1"] and pool.num_lost == 0 and not told


def test_a_server_that_was_removed_meanwhile_is_not_admitted(pool_of):
    pool = pool_of()
    gone = pool.servers[0]
    pool.remove(gone)
    FakeChannel(pool, gone)
    assert gone.channel is None and pool.present == []


def test_close_ends_all_connections_and_is_no_failure(pool_of):
    pool, told = pool_of(max_losses=0), []
    pool.on_lost = told.append
    first, second = both_ready(pool)
    pool.close()
    assert first.is_closed and second.is_closed
    first.die()  # its connection ended
    pool.check()
    assert pool.num_lost == 0 and not told
    late = FakeChannel(pool, pool.servers[0])
    assert pool.servers[0].channel is not late
