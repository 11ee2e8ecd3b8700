"""The trainer's side of a sync: collectives run on a thread of their own, and the main thread's waits have limits."""

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastgrpo.rollout.servers.channel import Meeting
from fastgrpo.rollout.servers.pool import Channel, Received, Server, ServerPool
from fastgrpo.rollout.weight_sync import Manifest, Sender, SyncGroup, open_store

Bucket = list[tuple[str, Tensor]]

POLL_S = 0.1

COLLECTIVE_FRAC = 0.7
"""Share of a sync's time that one of its collectives may take."""


class WeightSender:
    """Sends weights to the servers. A process group is used until one of its members changes."""

    def __init__(
        self,
        pool: ServerPool,
        host_towards: Callable[[list[str]], str],  # this host's address as servers with these addresses reach it
        manifest: Manifest,
        device: torch.device,
        timeout_s: float,
    ) -> None:
        self.pool, self.host_towards, self.manifest = pool, host_towards, manifest
        self.device, self.timeout_s = device, timeout_s
        self._members: tuple[Any, ...] = ()  # the channels of the servers of the group
        self._sender: Sender | None = None
        self._sending: _Sending | None = None
        self._numbers = itertools.count()
        self.complaints: list[str] = []  # about the last sync, if it failed

    def send(self, servers: list[Server], buckets: Iterable[Bucket], version: int, *, with_checksums: bool) -> None:
        """Begins a sync, which ends with `replies`.

        ``buckets`` is read to its end even after a failure, because other ranks take part in making it. At most two
        buckets are in memory.
        """
        for server in servers:
            server.received.clear()
        ask = _Ask(next(self._numbers), version, with_checksums)
        self._sending = sending = _Sending(self, servers, ask, time.monotonic() + self.timeout_s)
        for server in servers:
            self.pool.set_syncing(server, True)
        sending.start()
        for bucket in buckets:
            sending.hand_over(bucket)

    def replies(self) -> dict[Server, tuple[Channel, Received]] | None:
        """The reply of every server and the channel that it came by; None if one failed: the sync must be done again.

        Servers that did not reply are given up.
        """
        assert self._sending is not None, "nothing was sent"
        replies = self._sending.finish()
        self._sending = None
        return replies

    def group_of(self, sending: "_Sending") -> Sender:
        """Tells the servers to receive, and returns the sender to their group: a new one if their processes changed.

        Raises RuntimeError if the sync was given up meanwhile.
        """
        members = sending.channels
        if self._sender is not None and members == self._members:
            for channel in members:
                sending.ask.of(channel)
            return self._sender
        if None in members:
            raise RuntimeError("a server was lost before it could be told")
        self.leave()
        # A process that waits for others gives up before the deadline and says so: then the silent ones are at fault.
        timeout_s = COLLECTIVE_FRAC * self.timeout_s
        size, first_rank = 1 + sum(s.num_workers for s in sending.servers), 1
        host = self.host_towards([s.url for s in sending.servers])
        store = open_store(host, size, timeout_s)
        for server, channel in zip(sending.servers, members, strict=True):
            channel.join(Meeting(host, store.port, first_rank, size, timeout_s, self.manifest))
            sending.ask.of(channel)
            first_rank += server.num_workers
        group = SyncGroup.join(store, 0, size, self.device, timeout_s)
        if self._sending is not sending:
            group.abort()
            raise RuntimeError("the sync was given up")
        self._sender, self._members = Sender(group, self.manifest), members
        return self._sender

    def leave(self) -> None:
        """Leaves the group, which has failed or whose members have changed."""
        if self._sender is not None:
            self._sender.group.abort()
        self._sender, self._members = None, ()


@dataclass(frozen=True)
class _Ask:
    """What the servers are asked to receive."""

    number: int
    version: int
    with_checksums: bool

    def of(self, channel: Channel) -> None:
        channel.receive(self.number, self.version, with_checksums=self.with_checksums)


class _Sending:
    """One sync. Its thread may hang in a collective; the main thread waits for it only until the deadline."""

    def __init__(self, owner: WeightSender, servers: list[Server], ask: _Ask, deadline: float) -> None:
        self.owner, self.servers, self.ask, self.deadline = owner, servers, ask, deadline
        self.channels: tuple[Any, ...] = tuple(s.channel for s in servers)  # other processes may take their places
        self.error: Exception | None = None
        self._bucket: Bucket | None = None
        self._has_all = False
        self._is_over = False
        self._turn = threading.Condition()

    def start(self) -> None:
        threading.Thread(target=self._send, name="weight sync", daemon=True).start()

    def hand_over(self, bucket: Bucket) -> None:
        """Waits until the previous bucket has arrived. After a failure buckets are dropped."""
        if bucket and bucket[0][1].is_cuda:
            torch.cuda.current_stream().synchronize()  # the sending thread has another stream
        with self._turn:
            while self._bucket is not None and self._goes_on():
                self._turn.wait(POLL_S)
            if self._bucket is not None and not self._is_over:
                self.error = self.error or TimeoutError("the previous bucket was not taken")
            elif not self._is_over and self.error is None:
                self._bucket = bucket
                self._turn.notify_all()

    def finish(self) -> dict[Server, tuple[Channel, Received]] | None:
        """Waits for the reply of every server, until the deadline."""
        with self._turn:
            self._has_all = True
            self._turn.notify_all()
            while self._goes_on():
                self._turn.wait(POLL_S)
            has_failed = self.error is not None or not self._is_over
        if has_failed:
            self.owner.leave()  # so that servers do not wait for the rest of a broadcast
        pool = self.owner.pool
        pool.wait(lambda: not self._silent(), self._left_s)
        for server, channel in zip(self.servers, self.channels, strict=True):
            if channel is not None and server in self._silent():
                silent_s = self.owner.timeout_s
                pool.lose(server, channel, f"it took no part in a weight sync for {silent_s:g} s (--deadline.sync_s)")
            pool.set_syncing(server, False)
        lost = self._lost()
        answered = {s: reply for s in self.servers if s not in lost and (reply := self._reply(s)) is not None}
        replies = {server: reply for server, reply in answered.items() if not reply.error}
        if has_failed or len(replies) < len(self.servers):
            self.owner.leave()
            self.owner.complaints = [*self._complaints(), *([repr(self.error)] if self.error else [])]
            return None
        channels = dict(zip(self.servers, self.channels, strict=True))
        return {server: (channels[server], reply) for server, reply in replies.items()}

    def _goes_on(self) -> bool:
        """Whether the sending thread may still reach everybody in time."""
        return not self._is_over and self._left_s > 0 and not self._lost() and not self._complaints()

    def _complaints(self) -> list[str]:
        """The reasons why servers could not take part, as they report them."""
        found = ((s, self._reply(s)) for s in self.servers)
        return [f"server {s.url}: {reply.error}" for s, reply in found if reply is not None and reply.error]

    def _lost(self) -> list[Server]:
        """Servers whose process is gone or was replaced."""
        pairs = zip(self.servers, self.channels, strict=True)
        return [s for s, channel in pairs if channel is None or s.channel is not channel]

    def _silent(self) -> list[Server]:
        lost = self._lost()
        return [s for s in self.servers if s not in lost and self._reply(s) is None]

    def _reply(self, server: Server) -> Received | None:
        """The server's reply to this attempt; one to an earlier attempt may come late and does not count."""
        return next((r for r in list(server.received) if r.number == self.ask.number), None)

    @property
    def _left_s(self) -> float:
        return max(0.0, self.deadline - time.monotonic())

    def _send(self) -> None:
        try:
            if self.owner.device.type == "cuda":
                torch.cuda.set_device(self.owner.device)  # a new thread begins with the first GPU
            sender = self.owner.group_of(self)
            while (bucket := self._next()) is not None:
                sender.send(bucket)
                with self._turn:
                    self._bucket = None
                    self._turn.notify_all()
        except Exception as error:  # a peer has ended: the main thread decides what to do
            self.error = error.with_traceback(None)  # whose frames would keep the group and its connections
        finally:
            with self._turn:
                self._is_over = True
                self._turn.notify_all()

    def _next(self) -> Bucket | None:
        with self._turn:
            self._turn.wait_for(lambda: self._bucket is not None or self._has_all)
            return self._bucket


def in_buckets(weights: Iterable[tuple[str, Tensor]], most_bytes: int) -> Iterator[Bucket]:
    """The tensors in consecutive buckets of at most so many bytes; a larger tensor is a bucket of its own."""
    bucket: Bucket = []
    size = 0
    for name, value in weights:
        if bucket and size + value.nbytes > most_bytes:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, value))
        size += value.nbytes
    if bucket:
        yield bucket
