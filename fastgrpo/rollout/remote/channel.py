"""A connection whose owner never waits, even if the peer stops in the middle of a message."""

import logging
import queue
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from fastgrpo.rollout.remote import messages as m

log = logging.getLogger(__name__)


class Channel:
    """The pool's end of a connection, which sends and receives on threads of its own.

    ``on_message`` gets every message, and None once, at the end.
    """

    def __init__(self, connection: Connection, on_message: "Callable[[Channel, Any], None]", name: str) -> None:
        self._connection, self._on_message, self.name = connection, on_message, name
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=work, name=f"{name}: {work.__name__[1:]}", daemon=True)
            for work in (self._receive_all, self._send_all)
        ]
        for thread in self._threads:
            thread.start()

    def send(self, message: Any) -> None:
        """Queues a message and returns at once. After None nothing more is sent. A failed send closes the channel."""
        self._outbox.put(message)

    def wait_until_sent(self, limit_s: float) -> None:
        """Waits until everything up to the None is sent, or the time is up."""
        self._threads[1].join(limit_s)

    def close(self) -> None:
        """Ends both threads, whatever they wait for; the peer sees the end of the connection."""
        self._outbox.put(None)
        m.hang_up(self._connection)

    def _receive_all(self) -> None:
        try:
            while True:
                self._on_message(self, m.receive(self._connection, from_peer=True))
        except Exception as error:
            if isinstance(error, ValueError):
                log.warning("fastgrpo: %s sent what is no message: %s", self.name, error)
            elif not isinstance(error, EOFError | OSError):
                log.exception("a message could not be received")
            self.close()
            self._on_message(self, None)

    def _send_all(self) -> None:
        while (message := self._outbox.get()) is not None:
            try:
                m.send(self._connection, message)
            except Exception as error:
                if not isinstance(error, OSError):
                    log.exception("a message could not be sent")
                self.close()
                return
