"""``fastgrpo track RUN --track wandb``: sends a run that is over, or goes on, to trackers. With ``--follow``, the
process beside a run that does so as long as the run goes on."""

import argparse
import contextlib
import os
import select
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from fastgrpo.command_line import exit_codes, expanded, ignore_lost_output, run_command
from fastgrpo.command_line.ending import do_nothing, handle
from fastgrpo.track.follow import follow
from fastgrpo.track.libraries import require_trackers
from fastgrpo.track.process import CLOSE_S


def main(argv: Sequence[str] | None = None) -> int:
    """Sends a run to trackers. Returns 0 if they have all of it, 1 if not; 2 if there is no such run or tracker."""
    parser = argparse.ArgumentParser("fastgrpo track", description="Send a run's metrics and rollouts to trackers.")
    parser.add_argument("run", metavar="RUN", help="a run folder, or the name of one under runs/")
    parser.add_argument("--track", metavar="TRACKER", nargs="+", required=True, type=expanded, help="wandb, ...")
    parser.add_argument("--follow", metavar="PID", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    ignore_lost_output()
    if given.follow is not None:
        _follow(Path(given.run), given.track, given.follow)
    from fastgrpo.report.__main__ import find_run

    try:
        require_trackers(given.track)
        folder = find_run(given.run)
        if not (folder / "run.json").is_file():
            raise ValueError(f"{folder} holds no run: there is no run.json in it")
    except ValueError as error:
        parser.error(str(error))
    try:
        counts = follow(folder, given.track, lambda: True, print, close_s=None)
    except ValueError as error:  # of what the run has recorded
        parser.error(str(error))
    for name, count in counts.items():
        print(f"{name}: {count['sent']} steps sent, {count['dropped']} dropped")
    return exit_codes.FAILED if any(count["dropped"] for count in counts.values()) else exit_codes.DONE


def _follow(folder: Path, names: Sequence[str], run_pid: int) -> NoReturn:
    """Feeds the trackers until the run says that it is over, or is not there any more."""
    handle(do_nothing)  # the run says when it is over
    os.nice(5)  # and comes first

    def run_is_over() -> bool:
        said_so, _, _ = select.select([sys.stdin], [], [], 0)
        return bool(said_so) or os.getppid() != run_pid

    follow(folder, names, run_is_over, _sayer(), CLOSE_S)
    sys.stderr.flush()
    os._exit(0)  # a library that hangs would hang the end of the interpreter too


def _sayer() -> Callable[[str], None]:
    """What speaks to the run. All else that is printed here, by libraries, goes to the log."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(text: str) -> None:
        with contextlib.suppress(OSError):  # the run was killed
            print(" ".join(text.split()), file=out)

    return say


if __name__ == "__main__":
    run_command(main)
