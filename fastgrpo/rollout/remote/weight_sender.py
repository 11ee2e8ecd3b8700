"""The trainer's side of a sync: collectives on a thread of their own, every wait of the main thread bounded."""

import itertools
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastgrpo.rollout.remote import messages as m
from fastgrpo.rollout.remote.pool import Engine, EnginePool
from fastgrpo.rollout.weight_sync import Manifest, Sender, SyncGroup, open_store

Bucket = list[tuple[str, Tensor]]

TICK_S = 0.1

PATIENCE = 0.7
"""Of a sync's time, what one collective of it may take."""


class WeightSender:
    """Sends weights to all engines that are there. A group of processes serves until one of them changes."""

    def __init__(self, pool: EnginePool, manifest: Manifest, device: torch.device, timeout_s: float) -> None:
        self.pool, self.manifest, self.device, self.timeout_s = pool, manifest, device, timeout_s
        self._members: tuple[Any, ...] = ()  # the lines of the engines of the group
        self._sender: Sender | None = None
        self._sending: _Sending | None = None
        self._numbers = itertools.count()
        self.complaints: list[str] = []  # about the last sync, if it failed

    def send(self, engines: list[Engine], buckets: Iterable[Bucket], version: int, *, with_checksums: bool) -> None:
        """One sync, which ends with `replies`.

        ``buckets`` is read to its end whatever happens, for other ranks take part in making it. At most two are alive.
        """
        for engine in engines:
            engine.inbox.clear()
        command = m.Receive(next(self._numbers), version, with_checksums)
        self._sending = sending = _Sending(self, engines, command, time.monotonic() + self.timeout_s)
        for engine in engines:
            self.pool.expects_reply(engine, True)
        sending.start()
        for bucket in buckets:
            sending.hand_over(bucket)

    def replies(self) -> dict[int, m.Received] | None:
        """What every engine said, by its index, or None if one failed: those that kept silent are given up, and the
        sync must be done again."""
        assert self._sending is not None, "nothing was sent"
        replies = self._sending.finish()
        self._sending = None
        return replies

    def group_of(self, sending: "_Sending") -> Sender:
        """The sender to its very processes, which are told to receive; in a new group if the last was not theirs.

        Raises RuntimeError if it was given up meanwhile.
        """
        engines, command, members = sending.engines, sending.command, sending.lines
        if self._sender is not None and members == self._members:
            for engine in engines:
                self.pool.tell(engine, command)
            return self._sender
        if None in members:
            raise RuntimeError("an engine was lost before it could be told")
        self.leave()
        # Who waits for others gives up before the deadline, and says so: only the silent ones are to blame.
        timeout_s = PATIENCE * self.timeout_s
        host, size, first_rank = self.pool.address.host, 1 + sum(e.num_workers for e in engines), 1
        store = open_store(host, size, timeout_s)
        for engine in engines:
            self.pool.tell(engine, m.Join(host, store.port, first_rank, size, timeout_s, self.manifest))
            self.pool.tell(engine, command)
            first_rank += engine.num_workers
        group = SyncGroup.join(store, 0, size, self.device, timeout_s)
        if self._sending is not sending:
            group.abort()
            raise RuntimeError("the sync was given up")
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
        self.lines = tuple(e.line for e in engines)  # of the processes that it is for: others may take their places
        self.error: Exception | None = None
        self._bucket: Bucket | None = None
        self._has_all = False
        self._is_over = False
        self._turn = threading.Condition()

    def start(self) -> None:
        threading.Thread(target=self._send, name="weight sync", daemon=True).start()

    def hand_over(self, bucket: Bucket) -> None:
        """Waits until the bucket before has arrived; once something failed, buckets are dropped."""
        if bucket and bucket[0][1].is_cuda:
            torch.cuda.current_stream().synchronize()  # the thread's stream does not wait for this one
        with self._turn:
            if not self._turn.wait_for(lambda: self._bucket is None or self._is_over, self._left_s):
                self.error = self.error or TimeoutError("the bucket before was not taken in time")
            elif not self._is_over:
                self._bucket = bucket
                self._turn.notify_all()

    def finish(self) -> dict[int, m.Received] | None:
        """Waits for every engine's word, until the deadline."""
        with self._turn:
            self._has_all = True
            self._turn.notify_all()
            while not self._is_over and self._left_s > 0 and not self._lost() and not self._complaints():
                self._turn.wait(TICK_S)
            has_failed = self.error is not None or not self._is_over
        if has_failed:
            self.owner.leave()  # engines that wait for the rest of a broadcast hear of it
        pool = self.owner.pool
        pool.wait(lambda: not self._silent(), self._left_s)
        for engine, line in zip(self.engines, self.lines, strict=True):
            if line is not None and engine in self._silent():
                silent_s = self.owner.timeout_s
                pool.lose(engine, line, f"it took no part in a weight sync for {silent_s:g} s (--deadline.sync_s)")
            pool.expects_reply(engine, False)
        lost = self._lost()
        said = {e.index: reply for e in self.engines if e not in lost and (reply := self._reply(e)) is not None}
        replies = {index: reply for index, reply in said.items() if not reply.error}
        if has_failed or len(replies) < len(self.engines):
            self.owner.leave()
            self.owner.complaints = [*self._complaints(), *([repr(self.error)] if self.error else [])]
            return None
        return replies

    def _complaints(self) -> list[str]:
        """What engines say that kept them from taking part."""
        found = ((e, self._reply(e)) for e in self.engines)
        return [f"engine {e.index}: {reply.error}" for e, reply in found if reply is not None and reply.error]

    def _lost(self) -> list[Engine]:
        """Whose process is not there any more."""
        return [e for e, line in zip(self.engines, self.lines, strict=True) if line is None or e.line is not line]

    def _silent(self) -> list[Engine]:
        lost = self._lost()
        return [e for e in self.engines if e not in lost and self._reply(e) is None]

    def _reply(self, engine: Engine) -> m.Received | None:
        """Not one to an earlier attempt, which may come late."""
        return next((r for r in list(engine.inbox) if r.number == self.command.number), None)

    @property
    def _left_s(self) -> float:
        return max(0.0, self.deadline - time.monotonic())

    def _send(self) -> None:
        try:
            if self.owner.device.type == "cuda":
                torch.cuda.set_device(self.owner.device)  # a new thread begins on the first one
            sender = self.owner.group_of(self)
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


def in_buckets(weights: Iterable[tuple[str, Tensor]], most_bytes: int) -> Iterator[Bucket]:
    """Consecutive tensors of at most so many bytes together; one at least."""
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
