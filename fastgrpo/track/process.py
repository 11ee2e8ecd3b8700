"""The process that feeds a run's trackers, as the run sees it: nothing that a library does can reach the run."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastgrpo.track.follow import COUNTS

CLOSE_S = 30.0
"""Seconds that trackers have, when a run ends, to take what is left."""
LEAVE_S = 5.0  # more, until the process has ended


class TrackingProcess:
    """Reads what the run writes into its folder and sends it. Its own words and those of the libraries are in
    ``track/log.txt``; its warnings are said."""

    def __init__(self, folder: Path, names: Sequence[str], say: Callable[[str], None]) -> None:
        self.counts = folder / "track" / COUNTS
        self.counts.parent.mkdir(exist_ok=True)
        self.counts.unlink(missing_ok=True)
        self.is_closed = False
        command = [sys.executable, "-m", "fastgrpo.track", str(folder), "--track", *names, "--follow", str(os.getpid())]
        with (self.counts.parent / "log.txt").open("ab") as log:
            # A session of its own: a Ctrl-C is the run's, and one signal ends what the libraries have started.
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )
        threading.Thread(target=self._relay, args=(say,), name="tracker warnings", daemon=True).start()

    def _relay(self, say: Callable[[str], None]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            say(line.decode(errors="replace").rstrip())
        if not self.is_closed:
            say(f"warning: the process of the trackers has ended ({self.counts.parent / 'log.txt'}); the run goes on")

    def close(self, *, wait: bool = True) -> dict[str, Any]:
        """Gives the trackers some seconds to take what is left. Returns what became of the steps, tracker by tracker;
        nothing where the process ended before. Without ``wait`` it takes these seconds by itself."""
        if not self.is_closed:
            self.is_closed = True
            assert self.process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it has ended
                self.process.stdin.write(b"the run is over\n")
                self.process.stdin.flush()
            if wait:
                self._wait()
        return dict(json.loads(self.counts.read_text())) if self.counts.exists() else {}

    def _wait(self) -> None:
        try:
            self.process.wait(CLOSE_S + LEAVE_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)  # and what the libraries have started
            self.process.wait()
