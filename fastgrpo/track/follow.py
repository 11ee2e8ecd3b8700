"""A run's folder to its trackers, as long as the run goes on."""

import json
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fastgrpo.json_lines import read_json, write_json
from fastgrpo.track.feeder import Feeder
from fastgrpo.track.libraries import make_tracker, short_name
from fastgrpo.track.recorded import METRICS, POLL_S, Lines
from fastgrpo.track.tracker import TrackedRun

COUNTS = "counts.json"


def follow(
    folder: Path,
    names: Sequence[str],
    run_is_over: Callable[[], bool],
    say: Callable[[str], None],
    close_s: float | None,
) -> dict[str, Any]:
    """Feeds the trackers until the run is over, and then so many seconds more at most, None: until all is sent.

    Returns, and leaves in the folder, what became of the steps: tracker -> ``sent``, ``dropped``, ``complaint``.
    """
    run, is_over = tracked_run(folder), threading.Event()
    feeders = [Feeder(short_name(n), partial(make_tracker, n), run, is_over, say) for n in dict.fromkeys(names)]
    for feeder in feeders:
        feeder.start()
    while not run_is_over():
        _complain_of_silence(feeders)
        time.sleep(POLL_S)
    is_over.set()
    deadline = None if close_s is None else time.monotonic() + close_s
    for feeder in feeders:
        feeder.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
    counts = {feeder.tracker_name: _counts(feeder, folder) for feeder in feeders}
    write_json(folder / "track" / COUNTS, counts)
    return counts


def _complain_of_silence(feeders: Sequence[Feeder]) -> None:
    for feeder in feeders:
        if feeder.is_silent:
            feeder.complain("it does not answer")


def _counts(feeder: Feeder, folder: Path) -> dict[str, Any]:
    left = sum(record["step"] > feeder.reached for record in Lines(folder / METRICS).new())
    if feeder.is_alive():
        feeder.complain("the run has ended before it had taken everything, `fastgrpo track` sends the rest")
    return {"sent": feeder.sent, "dropped": feeder.dropped + left, "complaint": feeder.complaint}


def tracked_run(folder: Path) -> TrackedRun:
    """The run in a folder, with the id that its trackers know it by."""
    facts = read_json(folder / "run.json")
    began_with = {k: v for k, v in facts.items() if k not in ("config", "algorithm", "published", "data")}
    config = facts.get("config")
    shown = {**(config if isinstance(config, dict) else {}), **began_with, "algorithm": facts.get("algorithm")}
    settings = {k: v if isinstance(v, str | int | float | bool) else json.dumps(v) for k, v in shown.items()}
    return TrackedRun(name=facts.get("name", folder.name), id=_run_id(folder), folder=folder, settings=settings)


def _run_id(folder: Path) -> str:
    path = folder / "track" / "id"
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        path.write_text(secrets.token_hex(4) + "\n")
    return path.read_text().strip()
