"""The trainer's side of a sync: collectives on a thread of their own, every wait of the main thread bounded."""

import threading
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fastgrpo.rollout.remote import messages as m
from fastgrpo.rollout.remote.pool import Engine, EnginePool
from fastgrpo.rollout.weight_sync import Manifest, Sender, SyncGroup, open_store

Bucket = list[tuple[str, Tensor]]


class WeightSender:
    """Sends weights to all engines that are there. A group of processes serves until one of them changes."""

    def __init__(self, pool: EnginePool, manifest: Manifest, device: torch.device, timeout_s: float) -> None:
        self.pool, self.manifest, self.device, self.timeout_s = pool, manifest, device, timeout_s
        self._members: tuple[Any, ...] = ()  # the lines of the engines of the group
        self._sender: Sender | None = None

    def send(self, buckets: Iterable[Bucket], version: int, *, with_checksums: bool) -> dict[int, m.Received] | None:
        """One sync. Returns what every engine said, by its index, or None if one failed: those that kept silent are
        given up, and the sync must be done again.

        ``buckets`` is read to its end either way, for other ranks take part in making it. At most two are alive.
        """
        engines = self.pool.present
        for engine in engines:
            engine.inbox.clear()
        sending = _Sending(self, engines, m.Receive(version, with_checksums), time.monotonic() + self.timeout_s)
        for bucket in buckets:
            sending.hand_over(bucket)
        replies = sending.finish()
        if replies is None:
            self.leave()
        return replies

    def group_of(self, engines: list[Engine], timeout_s: float) -> Sender:
        """The sender to these very processes; in a new group if the last one was not theirs."""
        members = tuple(e.line for e in engines)
        if self._sender is None or members != self._members:
            self.leave()
            host, size, first_rank = self.pool.address.host, 1 + sum(e.num_workers for e in engines), 1
            store = open_store(host, size, timeout_s)
            for engine in engines:
                self.pool.tell(engine, m.Join(host, store.port, first_rank, size, timeout_s, self.manifest))
                first_rank += engine.num_workers
            group = SyncGroup.join(store, 0, size, self.device, timeout_s)
            self._sender, self._members = Sender(group, self.manifest), members
        return self._sender

    def leave(self) -> None:
        """The group has failed, or its members have changed."""
        if self._sender is not None:
            self._sender.group.abort()
        self._sender, self._members = None, ()


class _Sending:
    """One sync. The thread may hang in a collective; whoever waits for it does not."""

    def __init__(self, owner: WeightSender, engines: list[Engine], command: m.Receive, deadline: float) -> None:
        self.owner, self.engines, self.command, self.deadline = owner, engines, command, deadline
        self.error: Exception | None = None
        self._bucket: Bucket | None = None
        self._has_all = False
        self._is_over = False
        self._turn = threading.Condition()
        threading.Thread(target=self._send, name="weight sync", daemon=True).start()

    def hand_over(self, bucket: Bucket) -> None:
        """Waits until the bucket before has arrived; once something failed, buckets are dropped."""
        if bucket and bucket[0][1].is_cuda:
            torch.cuda.current_stream().synchronize()  # the thread's stream does not wait for this one
        with self._turn:
            if self._turn.wait_for(lambda: self._bucket is None or self._is_over, self._left_s) and not self._is_over:
                self._bucket = bucket
                self._turn.notify_all()

    def finish(self) -> dict[int, m.Received] | None:
        """Waits for every engine's word, until the deadline."""
        with self._turn:
            self._has_all = True
            self._turn.notify_all()
            self._turn.wait_for(lambda: self._is_over, self._left_s)
        pool, lines = self.owner.pool, [e.line for e in self.engines]

        def has_spoken(engine: Engine, line: Any) -> bool:
            return bool(engine.inbox) or engine.line is not line

        def all_have_spoken() -> bool:
            return all(has_spoken(e, line) for e, line in zip(self.engines, lines, strict=True))

        pool.wait(all_have_spoken, self._left_s)
        replies = {}
        for engine, line in zip(self.engines, lines, strict=True):
            if not has_spoken(engine, line):
                pool.lose(
                    engine, f"it took no part in a weight sync for {self.owner.timeout_s:g} s (--deadline.sync_s)"
                )
            elif engine.line is line and not engine.inbox[0].error:
                replies[engine.index] = engine.inbox[0]
        return replies if len(replies) == len(self.engines) and self.error is None and self._is_over else None

    @property
    def _left_s(self) -> float:
        return max(0.0, self.deadline - time.monotonic())

    def _send(self) -> None:
        try:
            sender = self.owner.group_of(self.engines, max(1.0, self._left_s))
            for engine in self.engines:
                self.owner.pool.tell(engine, self.command)
            while (bucket := self._next()) is not None:
                sender.send(bucket)
                with self._turn:
                    self._bucket = None
                    self._turn.notify_all()
        except Exception as error:  # a peer's end; the main thread decides what follows
            self.error = error
        finally:
            with self._turn:
                self._is_over = True
                self._turn.notify_all()

    def _next(self) -> Bucket | None:
        with self._turn:
            self._turn.wait_for(lambda: self._bucket is not None or self._has_all)
            return self._bucket
