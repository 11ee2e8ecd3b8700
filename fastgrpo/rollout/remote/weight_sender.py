"""The trainer's side of a sync: collectives run on a thread of their own, and the main thread's waits have limits."""

import itertools
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastgrpo.rollout.remote import messages as m
from fastgrpo.rollout.remote.engine_pool import Engine, EnginePool
from fastgrpo.rollout.weight_sync import Manifest, Sender, SyncGroup, open_store

Bucket = list[tuple[str, Tensor]]

POLL_S = 0.1

COLLECTIVE_FRAC = 0.7
"""Share of a sync's time that one of its collectives may take."""


class WeightSender:
    """Sends weights to the engines. A process group is used until one of its members changes."""

    def __init__(self, pool: EnginePool, manifest: Manifest, device: torch.device, timeout_s: float) -> None:
        self.pool, self.manifest, self.device, self.timeout_s = pool, manifest, device, timeout_s
        self._members: tuple[Any, ...] = ()  # the channels of the engines of the group
        self._sender: Sender | None = None
        self._sending: _Sending | None = None
        self._numbers = itertools.count()
        self.complaints: list[str] = []  # about the last sync, if it failed

    def send(self, engines: list[Engine], buckets: Iterable[Bucket], version: int, *, with_checksums: bool) -> None:
        """Begins a sync, which ends with `replies`.

        ``buckets`` is read to its end even after a failure, because other ranks take part in making it. At most two
        buckets are in memory.
        """
        for engine in engines:
            engine.inbox.clear()
        command = m.Receive(next(self._numbers), version, with_checksums)
        self._sending = sending = _Sending(self, engines, command, time.monotonic() + self.timeout_s)
        for engine in engines:
            self.pool.set_syncing(engine, True)
        sending.start()
        for bucket in buckets:
            sending.hand_over(bucket)

    def replies(self) -> dict[int, m.Received] | None:
        """The reply of every engine by its index, or None if one failed: then the sync must be done again.

        Engines that did not reply are given up.
        """
        assert self._sending is not None, "nothing was sent"
        replies = self._sending.finish()
        self._sending = None
        return replies

    def group_of(self, sending: "_Sending") -> Sender:
        """Tells the engines to receive, and returns the sender to their group: a new one if their processes changed.

        Raises RuntimeError if the sync was given up meanwhile.
        """
        engines, command, members = sending.engines, sending.command, sending.channels
        if self._sender is not None and members == self._members:
            for engine in engines:
                self.pool.send(engine, command)
            return self._sender
        if None in members:
            raise RuntimeError("an engine was lost before it could be told")
        self.leave()
        # A process that waits for others gives up before the deadline and says so: then the silent ones are at fault.
        timeout_s = COLLECTIVE_FRAC * self.timeout_s
        host, size, first_rank = self.pool.host, 1 + sum(e.num_workers for e in engines), 1
        store = open_store(host, size, timeout_s)
        for engine in engines:
            self.pool.send(engine, m.Join(host, store.port, first_rank, size, timeout_s, self.manifest))
            self.pool.send(engine, command)
            first_rank += engine.num_workers
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


class _Sending:
    """One sync. Its thread may hang in a collective; the main thread waits for it only until the deadline."""

    def __init__(self, owner: WeightSender, engines: list[Engine], command: m.Receive, deadline: float) -> None:
        self.owner, self.engines, self.command, self.deadline = owner, engines, command, deadline
        self.channels = tuple(e.channel for e in engines)  # other processes may take their places
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
            if not self._turn.wait_for(lambda: self._bucket is None or self._is_over, self._left_s):
                self.error = self.error or TimeoutError("the previous bucket was not taken in time")
            elif not self._is_over:
                self._bucket = bucket
                self._turn.notify_all()

    def finish(self) -> dict[int, m.Received] | None:
        """Waits for the reply of every engine, until the deadline."""
        with self._turn:
            self._has_all = True
            self._turn.notify_all()
            while not self._is_over and self._left_s > 0 and not self._lost() and not self._complaints():
                self._turn.wait(POLL_S)
            has_failed = self.error is not None or not self._is_over
        if has_failed:
            self.owner.leave()  # so that engines do not wait for the rest of a broadcast
        pool = self.owner.pool
        pool.wait(lambda: not self._silent(), self._left_s)
        for engine, channel in zip(self.engines, self.channels, strict=True):
            if channel is not None and engine in self._silent():
                silent_s = self.owner.timeout_s
                pool.lose(engine, channel, f"it took no part in a weight sync for {silent_s:g} s (--deadline.sync_s)")
            pool.set_syncing(engine, False)
        lost = self._lost()
        answered = {e.index: reply for e in self.engines if e not in lost and (reply := self._reply(e)) is not None}
        replies = {index: reply for index, reply in answered.items() if not reply.error}
        if has_failed or len(replies) < len(self.engines):
            self.owner.leave()
            self.owner.complaints = [*self._complaints(), *([repr(self.error)] if self.error else [])]
            return None
        return replies

    def _complaints(self) -> list[str]:
        """The reasons why engines could not take part, as they report them."""
        found = ((e, self._reply(e)) for e in self.engines)
        return [f"engine {e.index}: {reply.error}" for e, reply in found if reply is not None and reply.error]

    def _lost(self) -> list[Engine]:
        """Engines whose process is gone or was replaced."""
        pairs = zip(self.engines, self.channels, strict=True)
        return [e for e, channel in pairs if channel is None or e.channel is not channel]

    def _silent(self) -> list[Engine]:
        lost = self._lost()
        return [e for e in self.engines if e not in lost and self._reply(e) is None]

    def _reply(self, engine: Engine) -> m.Received | None:
        """The engine's reply to this attempt; one to an earlier attempt may come late and does not count."""
        return next((r for r in list(engine.inbox) if r.number == self.command.number), None)

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
            self.error = error
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
