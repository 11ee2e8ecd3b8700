"""A sync over HTTP: servers meet the sender, receive its weights, and leave their checksums at its store."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fastgrpo.rollout.compare_weights import WeightMismatch, require_equal, with_checksums
from fastgrpo.rollout.servers import channel, watch
from fastgrpo.rollout.servers.watch import ServerWatch, host_towards
from fastgrpo.rollout.servers.weight_sender import WeightSender, in_buckets
from fastgrpo.rollout.weight_sync import LiveWeights, manifest
from tests.rollout.servers.accounts import NEEDED, about
from tests.rollout.servers.fake_server import JOIN, RECEIVE, FakeServer, refusal
from tests.rollout.servers.replica import Replica, half_of, replica_of
from tests.rollout.servers.until import until

SYNC_S = 4.0

pytestmark = pytest.mark.usefixtures("syncs_end")


def model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))


@pytest.fixture
def admitted(pool_of, monkeypatch):
    """The pool of these servers, once they are all there."""
    monkeypatch.setattr(watch, "LOOK_S", 0.02)
    monkeypatch.setattr(channel, "ALIVE_S", 0.05)
    watches = []

    def admit(*servers: FakeServer):
        pool = pool_of(0)
        urls = [server.url for server in servers]
        watches.append(ServerWatch(pool, lambda: urls, "", NEEDED, keep_cache=False))
        until(lambda: len(pool.present) == len(urls))
        return pool

    yield admit
    for found in watches:
        found._pool.close()
        found.close()


def synced(pool, source: nn.Module, dtype: torch.dtype = torch.float32, sender: WeightSender | None = None):
    """The sender's checksums, and the servers' replies."""
    weights = [(name, parameter.detach()) for name, parameter in source.named_parameters()]
    sender = sender or WeightSender(pool, host_towards, manifest(weights, dtype), torch.device("cpu"), SYNC_S)
    ours: dict[str, int] = {}
    buckets = in_buckets(with_checksums(weights, dtype, ours), 40)
    sender.send(pool.present, buckets, 17, with_checksums=True)
    return ours, sender.replies(), sender


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_checksums_of_a_servers_workers_add_up_to_those_of_the_trainer(admitted, dtype):
    halves = tuple(half_of(model(2), index) for index in range(2))
    if dtype == torch.bfloat16:
        halves = tuple(Replica(in_dtype(half.weights, dtype)) for half in halves)
    with FakeServer(replicas=halves) as split, FakeServer(replicas=(replica_of(model(3).to(dtype)),)) as whole:
        split.about = about(tensor_parallel=2).to_json()
        ours, replies, _ = synced(admitted(split, whole), model(1), dtype)
        assert [reply.policy_version for _, reply in replies.values()] == [17, 17]
        for _, reply in replies.values():
            require_equal(ours, reply.checksums, "a server")
        assert len(ours) == 4 and set(halves[0].weights.checksums()) > set(halves[1].weights.checksums())
        assert [len(server.of(path)) for server in (split, whole) for path in (JOIN, RECEIVE)] == [1, 1, 1, 1]


def in_dtype(weights: LiveWeights, dtype: torch.dtype) -> LiveWeights:
    places = {name: replace(place, row=0) for name, place in weights.places.items()}
    return LiveWeights({name: view.to(dtype) for name, view in weights.views.items()}, places)


def test_a_server_that_changes_its_weights_after_it_received_them_is_found_out(admitted):
    parameters = {name: p.detach() for name, p in model(2).named_parameters()}
    places = replica_of(model(2)).weights.places
    broken = LiveWeights(parameters, places, after_write=lambda: parameters["1.weight"].mul_(-1))
    with FakeServer(replicas=(Replica(broken),)) as server:
        ours, replies, _ = synced(admitted(server), model(1))
        with pytest.raises(WeightMismatch, match=r"after a sync the weight 1.weight of a server differs"):
            require_equal(ours, next(iter(replies.values()))[1].checksums, "a server")


def test_a_sync_that_a_server_refuses_is_told_in_its_words_and_the_next_one_succeeds(admitted):
    with FakeServer(replicas=(replica_of(model(2)),)) as server:
        pool = admitted(server)
        server.refusals[JOIN] = refusal(500, "Worker failed with error 'out of memory'")
        _, replies, sender = synced(pool, model(1))
        assert replies is None and pool.num_lost == 0
        assert sender.complaints[0] == f"server {server.url}: Worker failed with error 'out of memory'"
        del server.refusals[JOIN]
        ours, replies, _ = synced(pool, model(1), sender=sender)
        require_equal(ours, next(iter(replies.values()))[1].checksums, "a server")


def test_a_server_that_dies_in_a_sync_is_lost_and_gets_the_weights_when_it_is_there_again(admitted):
    with FakeServer(replicas=(replica_of(model(2)),)) as server:
        pool = admitted(server)
        server.hold(RECEIVE)
        weights = [(name, parameter.detach()) for name, parameter in model(1).named_parameters()]
        sender = WeightSender(pool, host_towards, manifest(weights, torch.float32), torch.device("cpu"), SYNC_S)
        sender.send(pool.present, [weights], 17, with_checksums=False)
        until(lambda: server.of(RECEIVE))
        server.die()
        assert sender.replies() is None
        until(lambda: pool.num_lost == 1)
        server.release(RECEIVE)
        server.come()
        until(lambda: pool.unsynced)
        ours, replies, _ = synced(pool, model(1), sender=sender)
        require_equal(ours, next(iter(replies.values()))[1].checksums, "a server")
