"""The pool's port: who comes in has proved that he knows the secret, and nobody stands in the door for long."""

import logging
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from fastgrpo.rollout.remote import messages as m
from fastgrpo.rollout.remote.address import Address

log = logging.getLogger(__name__)

INTRODUCTION_S = 5.0
"""A peer has so long, from the first byte to its Hello, however it spreads them."""
MAX_AT_THE_DOOR = 64
"""More at once, and the one that has waited longest is sent away: a peer needs milliseconds."""
MAX_COMPLAINTS = 20
RETRY_S = 0.1  # after an accept that failed, as with too many open files


class Door:
    """Listens, and hands on every connection of a peer that knows the secret, with its Hello."""

    def __init__(self, address: Address, listener: m.Listener, num_engines: int) -> None:
        self.address, self.num_engines = address, num_engines
        self._listener = listener
        self._since: dict[Connection, float] = {}  # at the door: time.monotonic; oldest first
        self._lock = threading.Lock()
        self._num_complaints = 0
        self._is_closed = False

    def open(self, admit: Callable[[Connection, m.Hello], None]) -> None:
        threading.Thread(target=self._accept, args=(admit,), name="engine pool: accept", daemon=True).start()

    def close(self) -> None:
        self._is_closed = True
        self._listener.close()

    def send_away_the_silent(self) -> None:
        """Hangs up on those that have stood there too long; to be called now and then."""
        now = time.monotonic()
        with self._lock:
            for connection in [c for c, since in self._since.items() if now - since > INTRODUCTION_S]:
                self._send_away(connection)

    def _accept(self, admit: Callable[[Connection, m.Hello], None]) -> None:
        while not self._is_closed:
            try:
                connection = self._listener.accept()
            except OSError:
                time.sleep(RETRY_S)
                continue
            with self._lock:
                if len(self._since) >= MAX_AT_THE_DOOR:
                    self._send_away(next(iter(self._since)))
                self._since[connection] = time.monotonic()
            threading.Thread(target=self._ask, args=(connection, admit), daemon=True).start()

    def _send_away(self, connection: Connection) -> None:
        """Its own thread wakes, and closes it."""
        del self._since[connection]
        m.hang_up(connection)

    def _ask(self, connection: Connection, admit: Callable[[Connection, m.Hello], None]) -> None:
        try:
            hello = m.authenticate(connection, self.address.secret, self.num_engines)
        except Exception as error:  # an unknown process may send anything
            self._complain(error)
            hello = None
        with self._lock:
            was_sent_away = self._since.pop(connection, None) is None
            if hello is None or was_sent_away:
                connection.close()
                return
        admit(connection, hello)

    def _complain(self, error: Exception) -> None:
        self._num_complaints += 1
        if self._num_complaints <= MAX_COMPLAINTS:
            why = str(error) or "its connection ended before it had introduced itself"
            last = "; others will not be named" if self._num_complaints == MAX_COMPLAINTS else ""
            log.warning("fastgrpo: the engine pool refused a connection from an unknown process: %s%s", why, last)
