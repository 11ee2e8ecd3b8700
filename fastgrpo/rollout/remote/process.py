"""The process of an engine: ``python -m fastgrpo.rollout.remote.process``, started by its supervisor.

It reads a `Boot` from stdin, connects to the pool, and draws what it is given until it is told to end or the pool is
gone.
"""

import os
import pickle
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from fastgrpo.command_line import ignore_lost_output
from fastgrpo.command_line.ending import do_nothing, handle
from fastgrpo.rollout.engine_protocol import RolloutEngine
from fastgrpo.rollout.engine_spec import EngineSpec
from fastgrpo.rollout.engines import start_engine
from fastgrpo.rollout.remote import messages as m
from fastgrpo.rollout.remote.address import Address


@dataclass(frozen=True)
class Boot:
    """The pool's address, and the engine to start."""

    address: Address
    index: int
    spec: EngineSpec


def main() -> int:
    handle(do_nothing)  # the pool says when it is over
    ignore_lost_output()
    boot: Boot = pickle.load(sys.stdin.buffer)
    engine = start_engine(boot.spec)
    hello = m.Hello(boot.index, False, this_process(), engine.num_workers, note=not_in_place(engine))
    connection = m.connect(boot.address, hello)
    try:
        Server(connection, engine).serve()
    except (EOFError, ConnectionError):
        return 1  # the pool is gone, and reports its own error
    except Exception as error:
        traceback.print_exc()
        m.send(connection, m.Failed(f"{type(error).__name__}: {error}"))
        return 1
    return 0


def not_in_place(engine: RolloutEngine) -> str:
    """Why weights are not written in place, for the log; empty if they are."""
    reason = engine.not_in_place
    return f"weights are loaded anew at every sync, not written in place: {reason}" if reason else ""


def this_process() -> str:
    """This process's pid and host, for messages."""
    return f"pid {os.getpid()} on {socket.gethostname()}"


class Server:
    """Steps the engine, and handles the pool's messages between two steps: so a write of weights needs no pause."""

    def __init__(self, connection: Connection, engine: RolloutEngine) -> None:
        self.connection, self.engine = connection, engine
        self.not_joined = "no sender of weights was named"  # why no weights can be received; empty if they can
        self.busy_s = 0.0
        self.last_alive = time.monotonic()

    def serve(self) -> None:
        while self._handle_messages():
            if self._is_drawing():
                self._step()
            if time.monotonic() - self.last_alive >= m.HEARTBEAT_S:
                m.send(self.connection, m.Alive(self.busy_s))
                self.busy_s, self.last_alive = 0.0, time.monotonic()

    def _handle_messages(self) -> bool:
        """Handles all messages that are there; waits only while there is nothing to draw. Returns False at the end."""
        while self.connection.poll(0 if self._is_drawing() else m.HEARTBEAT_S):
            message = m.receive(self.connection, from_peer=False)
            if isinstance(message, m.End):
                return False
            self._handle(message)
        return True

    def _is_drawing(self) -> bool:
        """Whether there is something to draw. After a failed sync nothing is drawn: half of the weights may be new."""
        return self.engine.is_unfinished() and not self.not_joined

    def _handle(self, message: Any) -> None:
        match message:
            case m.Submit(requests=requests):
                self.engine.submit(requests)
            case m.Cancel(ids=ids):
                self.engine.cancel(ids)
            case m.Join():
                self._join(message)
            case m.Receive():
                m.send(self.connection, self._receive(message))
            case _:
                raise RuntimeError(f"an engine does not know the message {type(message).__name__}")

    def _step(self) -> None:
        began = time.monotonic()
        finished = self.engine.step()
        self.busy_s += time.monotonic() - began
        if finished:
            m.send(self.connection, m.Finished(finished))

    def _join(self, join: m.Join) -> None:
        try:
            self.engine.join_sync(join.host, join.port, join.first_rank, join.size, join.timeout_s, join.manifest)
            self.not_joined = ""
        except (RuntimeError, KeyError, TimeoutError) as error:  # torch's errors about a group are RuntimeErrors
            self.not_joined = str(error).splitlines()[0]

    def _receive(self, command: m.Receive) -> m.Received:
        number, version = command.number, command.policy_version
        if self.not_joined:
            return m.Received(number, version, self.not_joined)
        try:
            self.engine.receive_weights(version)
        except (RuntimeError, TimeoutError) as error:  # a peer is gone: the sender will form another group
            self.not_joined = str(error).splitlines()[0]
            return m.Received(number, version, self.not_joined)
        return m.Received(number, version, checksums=self.engine.checksums() if command.with_checksums else None)


if __name__ == "__main__":
    sys.exit(main())
