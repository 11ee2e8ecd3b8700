"""One run, or one evaluation, in a folder at a time: a lock that the kernel takes back when its holders have ended."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fastgrpo.command_line.system_errors import in_words

LOCK = ".lock"
WAIT_S = 120.0
"""How long to wait for processes that are ending: a killed run's last ranks, or an NFS client that is gone (90 s)."""
SAID_AFTER_S = 1.0
POLL_S = 0.1
UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""What file systems without locks answer: Lustre mounted without ``flock``, NFS whose server has no lock service."""


class FolderLock:
    """Held by the process that enters it and by the other ranks of its launch, which use `joined`. Until the last of
    them has ended, everyone else is refused. The file says who the first is."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self.path, self.say = folder, folder / LOCK, say
        self.file = -1

    def __enter__(self) -> Self:
        """Raises ValueError if another process holds it, with who that is, or if the folder cannot be written in."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._open()
            self._take()
        except OSError as error:
            self.close()
            raise ValueError(f"the folder {self.folder} cannot be used: {in_words(error)}") from error
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Holds the lock that the first rank of this launch has. Nothing where this rank's machine has no folder."""
        try:
            if self.folder.is_dir():  # the file itself may not be seen on this machine yet
                self._open()
                self._lock(fcntl.LOCK_SH)
            yield
        finally:
            self.close()

    def close(self) -> None:
        _OPEN.discard(self)
        if self.file >= 0:
            os.close(self.file)
        self.file = -1

    def _open(self) -> None:
        # Not inherited by programs that this process starts; what follows no link can overwrite no other file.
        self.file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        _OPEN.add(self)

    def _take(self) -> None:
        began, has_said, mine = time.monotonic(), False, None
        while True:
            if self._lock(fcntl.LOCK_EX):
                mine = self._sign()
                # Shared with the other ranks from now on. The kernel lets go before it locks anew: one may be faster.
                if self._lock(fcntl.LOCK_SH):
                    return
            holder, waited_s = self._holder(), time.monotonic() - began
            if (holder != mine and _is_alive(holder)) or waited_s > WAIT_S:
                raise ValueError(self._refusal(holder))
            if waited_s > SAID_AFTER_S and not has_said:
                self.say(f"{self._in_use(holder)}, which may have ended: waiting up to {WAIT_S:g} s for its last ranks")
                has_said = True
            time.sleep(POLL_S)

    def _lock(self, kind: int) -> bool:
        """Whether this process has the lock now."""
        try:
            fcntl.flock(self.file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            if kind == fcntl.LOCK_EX:
                self.say(
                    f"warning: {self.folder} is on a file system without locks ({error.strerror}): nothing keeps "
                    f"another run out of it"
                )
        return True

    def _sign(self) -> dict[str, Any]:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        holder: dict[str, Any] = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        os.ftruncate(self.file, 0)
        os.pwrite(self.file, json.dumps(holder).encode(), 0)
        return holder

    def _holder(self) -> dict[str, Any]:
        """What the file says; empty while its holder is about to write."""
        try:
            found = json.loads(os.pread(self.file, 4096, 0))
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def _refusal(self, holder: dict[str, Any]) -> str:
        return f"{self._in_use(holder)}: wait until it ends, or end it, or give another --name"

    def _in_use(self, holder: dict[str, Any]) -> str:
        who = "process {pid} on {host}, since {since}".format_map({"pid": "?", "host": "?", "since": "?", **holder})
        return f"{self.folder} is in use by {who}"


_OPEN: set[FolderLock] = set()


def _forget() -> None:
    """In a fork: a child that outlives this process must not keep its lock."""
    for lock in list(_OPEN):
        lock.close()


os.register_at_fork(after_in_child=_forget)


def _is_alive(holder: dict[str, Any]) -> bool:
    """Whether the holder is seen to be at work on this machine; of one elsewhere nothing is known."""
    if holder.get("host") != socket.gethostname():
        return False
    try:
        return Path(f"/proc/{holder.get('pid')}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False
