"""Weights reach the servers that are there; of those that die, hang or refuse each is judged by what it did."""

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgrpo.rollout.servers.pool import Received, Server, ServerPool
from fastgrpo.rollout.servers.weight_sender import Bucket, WeightSender, in_buckets
from fastgrpo.rollout.weight_sync import manifest
from tests.rollout.servers.fake_channel import FakeChannel, ready
from tests.rollout.servers.replica import Replica, half_of, replica_of
from tests.rollout.servers.until import until

SYNC_S = 4.0  # of which a meeting may take 0.7
AT_ONCE_S = 2.0

pytestmark = pytest.mark.usefixtures("syncs_end")


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))


def weights(of: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, parameter.detach()) for name, parameter in of.named_parameters()]


def at_home(urls: list[str]) -> str:
    return "127.0.0.1"


def sender_of(pool: ServerPool, timeout_s: float = SYNC_S) -> WeightSender:
    return WeightSender(pool, at_home, manifest(weights(model()), torch.float32), torch.device("cpu"), timeout_s)


def begin(sender: WeightSender, servers: Sequence[Server], buckets: Iterable[Bucket], version: int = 1) -> None:
    sender.send(list(servers), buckets, version, with_checksums=False)


def sync(sender: WeightSender, of: nn.Module, servers: Sequence[Server] | None = None) -> Any:
    begin(sender, sender.pool.present if servers is None else servers, in_buckets(weights(of), 40))
    return sender.replies()


def holds(replica: Replica, of: nn.Module) -> bool:
    """Whether it holds the model's weights, or its part of them."""
    whole = dict(weights(of))
    values = replica.values()
    return all(torch.equal(values[name], place.part_of(whole[name])) for name, place in replica.weights.places.items())


class JoiningChannel(FakeChannel):
    """A server whose workers really meet the sender, each on a thread of its own."""

    def __init__(self, pool: ServerPool, server: Server, *replicas: Replica) -> None:
        self.replicas, self.problem = replicas, ""
        self._workers = ThreadPoolExecutor(len(replicas))
        self._order = ThreadPoolExecutor(1)
        super().__init__(pool, server, num_workers=len(replicas))

    def join(self, meeting: Any) -> None:
        super().join(meeting)
        self._order.submit(self._join, meeting.to_json())

    def receive(self, number: int, version: int, *, with_checksums: bool) -> None:
        super().receive(number, version, with_checksums=with_checksums)
        self._order.submit(self._receive, Received(number, version))

    def _join(self, meeting: dict[str, Any]) -> None:
        self.problem = ""
        self._of_all([lambda r=r, place=i: r.join(meeting, place) for i, r in enumerate(self.replicas)])

    def _receive(self, received: Received) -> None:
        if not self.problem:
            self._of_all([lambda r=r: r.receive(received.number, False) for r in self.replicas])
        answer = Received(received.number, received.policy_version, self.problem)
        self.pool.on_received(self.server, self, answer)

    def _of_all(self, work: list[Any]) -> None:
        try:
            list(self._workers.map(lambda job: job(), work))
        except Exception as error:
            self.problem = str(error).splitlines()[0]


# Syncs that succeed.


def test_weights_reach_every_worker_of_every_server_bucket_by_bucket(pool_of):
    pool, source = pool_of(), model(1)
    halves = JoiningChannel(pool, pool.servers[0], half_of(model(3), 0), half_of(model(3), 1))
    whole = JoiningChannel(pool, pool.servers[1], replica_of(model(2)))
    replies = sync(sender_of(pool), source)
    assert [replies[s] for s in pool.servers] == [(s.channel, Received(0, 1)) for s in pool.servers]
    assert all(holds(replica, source) for replica in (*whole.replicas, *halves.replicas))
    assert [(m.first_rank, m.size) for m in (*halves.meetings, *whole.meetings)] == [(1, 4), (3, 4)]
    assert not any(server.is_syncing for server in pool.servers)


def test_a_group_is_used_until_one_of_its_members_changes(pool_of):
    pool = pool_of()
    sender = sender_of(pool)
    first, second = (JoiningChannel(pool, server, replica_of(model(2))) for server in pool.servers)
    for seed in (3, 4):
        assert sync(sender, model(seed)) is not None
    assert len(first.meetings) == len(second.meetings) == 1
    second.die()
    again = JoiningChannel(pool, pool.servers[1], replica_of(model(2)))
    assert sync(sender, model(5)) is not None
    assert len(first.meetings) == 2 and len(again.meetings) == 1
    assert sync(sender, model(6), pool.servers[1:]) is not None  # a server that joins late is sent them alone
    assert len(first.meetings) == 2 and holds(first.replicas[0], model(5)) and holds(again.replicas[0], model(6))


def test_what_fits_in_a_bucket_is_sent_in_one_and_in_its_order():
    values = [(name, torch.zeros(size)) for name, size in (("a", 2), ("b", 2), ("c", 9), ("d", 1), ("e", 3), ("f", 1))]
    buckets = [[name for name, _ in bucket] for bucket in in_buckets(iter(values), 16)]
    assert buckets == [["a", "b"], ["c"], ["d", "e"], ["f"]]
    assert list(in_buckets([], 16)) == []


# Syncs that fail.


def test_a_server_lost_before_a_sync_is_counted_once_and_not_waited_for(pool_of):
    pool = pool_of(1)
    servers, channel = pool.servers, ready(pool, pool.servers[0])
    channel.die()
    began = time.monotonic()
    assert sync(sender_of(pool), model(), servers) is None
    assert time.monotonic() - began < AT_ONCE_S and pool.num_lost == 1


def test_a_server_that_dies_in_a_sync_is_counted_once_and_not_waited_for(pool_of):
    pool = pool_of(1)
    channel, sender = ready(pool, pool.servers[0]), sender_of(pool)
    began = time.monotonic()
    begin(sender, pool.present, [weights(model())])
    until(lambda: channel.asked)
    channel.die()
    assert sender.replies() is None
    assert time.monotonic() - began < AT_ONCE_S and pool.num_lost == 1


@pytest.mark.parametrize("end", [FakeChannel.die, lambda channel: channel.received("it has no weight w")])
def test_buckets_do_not_wait_for_a_server_that_has_failed(pool_of, end):
    pool = pool_of(1)
    channel, sender = ready(pool, pool.servers[0]), sender_of(pool)
    began = time.monotonic()
    channel.receive = lambda number, version, *, with_checksums: channel.asked.append(number) or end(channel)
    assert sync(sender, model()) is None
    assert time.monotonic() - began < AT_ONCE_S


def test_of_a_sync_that_fails_only_the_silent_server_is_given_up(pool_of, monkeypatch):
    pool, why = pool_of(), []
    monkeypatch.setattr("fastgrpo.rollout.servers.pool.log.warning", lambda text, message: why.append(message))
    ready(pool, pool.servers[0])
    honest, sender = ready(pool, pool.servers[1]), sender_of(pool, 0.5)
    begin(sender, pool.present, [weights(model())])
    until(lambda: honest.asked)
    honest.received("the others did not come")
    assert sender.replies() is None
    assert pool.present == [pool.servers[1]] and len(why) == pool.num_lost == 1
    assert why[0] == "server http://server0 was lost: it took no part in a weight sync for 0.5 s (--deadline.sync_s)"
    assert "server http://server1: the others did not come" in sender.complaints


def test_an_answer_to_an_earlier_sync_is_no_answer_to_this_one(pool_of):
    pool = pool_of(1)
    channel, sender = ready(pool, pool.servers[0]), sender_of(pool, 0.5)
    begin(sender, pool.present, [weights(model())])
    until(lambda: channel.asked)
    channel.received(number=channel.asked[0] - 1)
    assert sender.replies() is None and pool.num_lost == 1


def test_a_server_that_cannot_take_part_says_why_at_once_and_is_kept(pool_of):
    pool = pool_of(1)
    channel, sender = FakeChannel(pool, pool.servers[0]), sender_of(pool)
    began = time.monotonic()
    begin(sender, pool.present, [weights(model())])
    until(lambda: channel.asked)
    channel.received("it has no weight w")
    assert sender.replies() is None and "server http://server0: it has no weight w" in sender.complaints
    assert time.monotonic() - began < AT_ONCE_S and pool.num_lost == 0 and not pool.servers[0].is_syncing


def test_a_server_of_another_model_says_so(pool_of):
    pool = pool_of(1)
    JoiningChannel(pool, pool.servers[0], replica_of(nn.Linear(6, 4)))
    sender = sender_of(pool, 1.0)
    assert sync(sender, model()) is None
    assert "trainer and engine do not have the same weights" in sender.complaints[0] and pool.num_lost == 0


def test_when_one_dies_the_others_get_the_weights_in_a_further_attempt(pool_of):
    pool, source = pool_of(), model(1)
    doomed = FakeChannel(pool, pool.servers[0])
    honest = JoiningChannel(pool, pool.servers[1], replica_of(model(2)))
    sender = sender_of(pool, 1.0)
    begin(sender, pool.present, in_buckets(weights(source), 40))
    until(lambda: doomed.asked and honest.asked)
    doomed.die()
    assert sender.replies() is None and pool.present == [pool.servers[1]]
    assert sync(sender, source) is not None and holds(honest.replicas[0], source) and pool.num_lost == 1


def test_buckets_are_read_to_their_end_after_a_failure_as_other_ranks_make_them_too(pool_of):
    pool, read = pool_of(1), []
    ready(pool, pool.servers[0]).die()

    def buckets() -> Iterator[Bucket]:
        for bucket in in_buckets(weights(model()), 1):
            read.append(bucket[0][0])
            yield bucket

    sender = sender_of(pool)
    begin(sender, pool.servers, buckets())
    assert sender.replies() is None and read == [name for name, _ in weights(model())]


def test_the_silence_of_a_server_in_a_sync_is_judged_by_the_sync_alone(pool_of):
    pool = pool_of(1, stall_s=0.1)
    channel, sender = ready(pool, pool.servers[0]), sender_of(pool)
    begin(sender, pool.present, [weights(model())])
    until(lambda: channel.asked)
    assert not pool.wait(lambda: pool.num_lost > 0, 0.4)
    threading.Timer(0.0, channel.received, ["no"]).start()
    assert sender.replies() is None and pool.num_lost == 0
    until(lambda: pool.num_lost == 1)  # from now on it must say something again


@pytest.mark.parametrize("late", [False, True])
def test_a_group_that_failed_is_not_used_again(pool_of, late):
    pool = pool_of(1)
    channel = JoiningChannel(pool, pool.servers[0], replica_of(model(2)))
    sender = sender_of(pool, 1.0)
    if late:
        assert sync(sender, model(3)) is not None
    begun = len(channel.meetings)
    channel.problem = "its last sync failed"
    channel.join = lambda meeting: FakeChannel.join(channel, meeting)
    assert sync(sender, model(4)) is None
    del channel.join
    assert sync(sender, model(5)) is not None and holds(channel.replicas[0], model(5))
    assert len(channel.meetings) == begun + (1 if late else 2)
