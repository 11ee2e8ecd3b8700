"""A connection that never makes its owner wait: a peer may be stopped in the middle of a word."""

import contextlib
import logging
import os
import queue
import socket
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

log = logging.getLogger(__name__)


class Line:
    """Sends and receives on threads of its own. ``hear`` gets every message, and None once, at the end."""

    def __init__(self, connection: Connection, hear: "Callable[[Line, Any], None]", name: str) -> None:
        self._connection, self._hear = connection, hear
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=work, name=f"{name}: {work.__name__[1:]}", daemon=True)
            for work in (self._listen, self._talk)
        ]
        for thread in self._threads:
            thread.start()

    def say(self, message: Any) -> None:
        """Returns at once. What cannot be delivered ends the line; after None nothing more is said."""
        self._outbox.put(message)

    def wait_until_said(self, limit_s: float) -> None:
        """After a last None: until all has left this process, or the time is up."""
        self._threads[1].join(limit_s)

    def hang_up(self) -> None:
        """Wakes both threads, wherever they are; the other side sees the end."""
        self._outbox.put(None)
        # close() alone would leave a thread that is inside send or recv there
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)

    def _listen(self) -> None:
        try:
            while True:
                self._hear(self, self._connection.recv())
        except Exception as error:
            if not isinstance(error, EOFError | OSError):
                log.exception("a message could not be taken in")
            self.hang_up()
            self._hear(self, None)

    def _talk(self) -> None:
        while (message := self._outbox.get()) is not None:
            try:
                self._connection.send(message)
            except Exception as error:
                if not isinstance(error, OSError):
                    log.exception("a message could not be sent")
                self.hang_up()
                return
