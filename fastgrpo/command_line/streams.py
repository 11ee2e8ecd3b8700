"""Standard input, output and error that are closed, or that break while the process goes on."""

import contextlib
import io
import os
import select
import sys
from typing import Any

STREAMS = (("stdin", os.O_RDONLY, "r"), ("stdout", os.O_WRONLY, "w"), ("stderr", os.O_WRONLY, "w"))


def open_closed_streams() -> None:
    """Opens to /dev/null what the caller has closed (``>&-``). Else the next file or socket would get its number, and
    what is printed would be written into that."""
    for descriptor, (name, flags, mode) in enumerate(STREAMS):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, flags), True)  # the lowest free number, which is this one
        if getattr(sys, name) is None:
            stream = os.fdopen(descriptor, mode, closefd=False)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def ignore_lost_output() -> None:
    """Makes standard output and error drop what cannot be written: the reader has left, the terminal is closed, the
    disk behind a log is full. Nobody who prints, here or in a library, hears of it.

    For commands whose work is not what they print. Streams that somebody has put in their place, as pytest does, stay.
    """
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is None or stream is not getattr(sys, f"__{name}__"):
            continue
        with contextlib.suppress(OSError):
            stream.flush()
        raw = io.BufferedWriter(_DropsWhatIsLost(stream.fileno(), "wb", closefd=False))
        setattr(sys, name, io.TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=True))


class _DropsWhatIsLost(io.FileIO):
    def write(self, data: Any) -> int:
        while True:
            try:
                written = super().write(data)
            except OSError:
                return memoryview(data).nbytes
            if written is not None:  # None: whoever shares the pipe has made it non-blocking, and it is full
                return written
            room = select.poll()
            room.register(self.fileno(), select.POLLOUT)
            room.poll()
