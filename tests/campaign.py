"""Runs that are killed, signalled and unheard, again and again: each must end, when it is resumed, bit for bit where an
undisturbed one does, and leave no process, no shared memory and no temporary file.

``python -m tests.campaign --kills 200 --signals --streams``. It prints what it did; the exit code is 1 if anything was
not as it must be, and then the folders stay.
"""

import argparse
import contextlib
import json
import os
import random
import re
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")  # before torch: forks lack threads

import psutil
import torch
from safetensors.torch import load_file

from fastgrpo.command_line import exit_codes
from fastgrpo.command_line.ending import ANNOUNCING
from fastgrpo.json_lines import JsonLines
from fastgrpo.ranks.secret import SECRET
from tests import tiny_recipe
from tests.conftest import TINY, hear_all
from tests.forks import Fork, Launch, adopt_orphans, mark_moments
from tests.run.test_run import results
from tests.strangers import listening, visit

LIMIT_S = 300.0
STEPS = 14
SETTINGS = (
    "--steps", str(STEPS), "--checkpoint.every_steps", "2", "--evaluation.every_steps", "5",
    "--reward.workers", "1", "--rollout.max_engine_restarts", "9", "--resume",
)  # fmt: skip
OF_ACCIDENTS = ("engine_restarts", "responses_redrawn")
OF_CLOCKS = ("train_s", "tokens_per_s")
OF_PROCESSES = ("engines", "track", "recording.jsonl", ".lock")
LEAVE_S = 20.0
KEEP_TMP = "torchinductor_"


@dataclass(frozen=True)
class Kind:
    """A kind of launch, and who can come to harm in it."""

    name: str
    arguments: tuple[str, ...]
    targets: tuple[str, ...]
    moments: tuple[str, ...] = ("start", "load", "step", "step", "checkpoint", "publish", "evaluate", "report")

    def of(self, runs: Path) -> list[str]:
        return [str(TINY), "--runs_dir", str(runs), *SETTINGS, *self.arguments]


KINDS = (
    Kind(
        "two trainers and a tracker",
        ("--track", f"{Path(__file__).parent}/track/trackers.py:Recording"),
        ("launcher", "group", "rank 0", "rank 1", "verifier", "tracker"),
    ),
)
SURVIVED = ("verifier", "tracker")
"""Whose death the run survives."""


@dataclass
class Campaign:
    """Counts what was done, and notes what was wrong."""

    folder: Path
    chance: random.Random
    wrong: list[str] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    longest_s: dict[str, float] = field(default_factory=dict)  # from an accident to the end
    undisturbed: dict[str, Path] = field(default_factory=dict)

    def runs(self, name: str) -> Path:
        """A new folder of runs, with the tiny recipe's base in it."""
        self.done["runs"] += 1
        runs = self.folder / f"{self.done['runs']:03d} {name}"
        shutil.copytree(self.folder / "base", runs / "tiny" / "base")
        (runs / "tmp").mkdir()
        os.environ["TMPDIR"] = str(runs / "tmp")
        return runs

    def start(self, kind: Kind, runs: Path, **options: Any) -> Launch:
        self.done["launches"] += 1
        return Launch(kind.of(runs), 2, runs / f"{self.done['launches']:04d}.log", **options)

    def expect(self, is_so: bool, complaint: str, launch: Launch) -> None:
        if not is_so:
            self.wrong.append(f"{launch.log}: {complaint}")
            print(self.wrong[-1], flush=True)

    def end(self, launch: Launch, runs: Path) -> int:
        """Waits for its end and for that of all its processes, which must leave nothing."""
        end = time.monotonic() + LIMIT_S
        while launch.poll() is None and time.monotonic() < end:
            launch.note_processes()
            time.sleep(0.05)
        self.expect(launch.poll() is not None, f"no end after {LIMIT_S:g} s", launch)
        launch.kill()
        launch.wait(LEAVE_S)
        began = time.monotonic()
        while (left := _reap()) and time.monotonic() - began < LEAVE_S:
            time.sleep(0.02)
        self.longest_s["orphans"] = max(self.longest_s.get("orphans", 0.0), time.monotonic() - began)
        self.expect(not left, f"processes are left: {[' '.join(p.cmdline())[-90:] for p in left]}", launch)
        for process in left:
            process.kill()
        pids = {str(p.pid) for p in launch.processes}
        numbers = re.compile(r"(?<![0-9a-f])\d+(?![0-9a-f])")  # and no part of a checksum
        shm = [p.name for p in Path("/dev/shm").iterdir() if pids & set(numbers.findall(p.name))]
        tmp = [p.name for p in (runs / "tmp").iterdir() if not p.name.startswith(KEEP_TMP)]
        self.expect(not shm and not tmp, f"files are left: {shm} {tmp}", launch)
        return launch.returncode

    def compare(self, kind: Kind, runs: Path, launch: Launch) -> None:
        differences = _differences(runs / "tiny", self.undisturbed[kind.name])
        self.expect(not differences, f"differs from an undisturbed run: {'; '.join(differences)}", launch)
        if not differences:
            self.done["ends equal"] += 1
        if not any(str(runs) in complaint for complaint in self.wrong):
            shutil.rmtree(runs)

    def begin(self) -> None:
        base = self.folder / "base"
        made = Fork(lambda: tiny_recipe.prepare(tiny_recipe.config, base, lambda _: None) or 0)
        assert made.wait(LIMIT_S) == 0
        for kind in KINDS:
            runs = self.runs(f"undisturbed, {kind.name}")
            launch = self.start(kind, runs)
            assert self.end(launch, runs) == 0, launch.log.read_text()
            self.undisturbed[kind.name] = runs / "tiny"

    # Kills

    def kill_runs(self, num_kills: int) -> None:
        while self.done["kills"] < num_kills:
            kind = self.chance.choice(KINDS)
            runs = self.runs(kind.name)
            for _ in range(min(self.chance.randint(2, 6), num_kills - self.done["kills"])):
                if self.kill_once(kind, runs):
                    break
            else:
                launch = self.start(kind, runs)
                code = self.end(launch, runs)
                self.expect(code == 0, f"a resumed run ended with {code}", launch)
                self.compare(kind, runs, launch)
            self.done["trials"] += 1
            print(
                f"{self.done['kills']} kills, {self.done['ends equal']} of {self.done['trials']} ends equal", flush=True
            )

    def kill_once(self, kind: Kind, runs: Path) -> bool:
        """One launch with one kill; whether the run has come to its end in it, and was compared."""
        whom, moment = self.chance.choice(kind.targets), self.chance.choice(kind.moments)
        times = self.chance.randint(1, 4) if moment == "step" else 1
        delay_s = self.chance.uniform(0, 1.0 if moment in ("start", "load") else 0.3)
        launch = self.start(kind, runs)
        killed = False
        if self.wait_for(launch, lambda: launch.times(moment) >= times):
            time.sleep(delay_s)
            victims = launch.find(whom)
            for victim in victims[:1] if whom in SURVIVED else victims:
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.kill()
                    killed = True
        if killed:
            self.done["kills"] += 1
            self.done[f"killed: {whom}"] += 1
            self.done[f"moment: {moment}"] += 1
        began = time.monotonic()
        code = self.end(launch, runs)
        if killed and whom not in SURVIVED and code != 0:
            self.longest_s[whom] = max(self.longest_s.get(whom, 0.0), time.monotonic() - began)
        expected = {
            "launcher": (-9, 0), "group": (-9, 0), "rank 0": (137, 0), "rank 1": (137, 0),
        }.get(whom if killed else "", (0,))  # fmt: skip
        self.expect(code in expected, f"{whom} was killed in {moment}, and the code is {code}", launch)
        if code == 0:
            self.compare(kind, runs, launch)
        return code == 0

    def wait_for(self, launch: Launch, is_so: Callable[[], bool]) -> bool:
        """False if the launch ends before."""
        end = time.monotonic() + LIMIT_S
        while launch.poll() is None and time.monotonic() < end:
            if is_so():
                return True
            time.sleep(0.002)
        return False

    # Signals

    def signal_runs(self, signals: Sequence[signal.Signals], moments: Sequence[str]) -> None:
        """Every signal at every moment of one run, which goes on after each."""
        kind = KINDS[0]
        for number in signals:
            runs = self.runs(number.name)
            for moment in moments:
                self.signal_once(kind, runs, number, moment)
            launch = self.start(kind, runs)
            self.expect(self.end(launch, runs) == 0, "a resumed run did not end well", launch)
            self.compare(kind, runs, launch)
            print(f"{number.name}: {', '.join(moments)}", flush=True)

    def signal_once(self, kind: Kind, runs: Path, number: signal.Signals, moment: str) -> None:
        launch = self.start(kind, runs, hold=moment)
        if self.wait_for(launch, lambda: launch.times(moment) > 0):
            time.sleep(0.1)
            os.kill(launch.pid, number)
        self.done["signals"] += 1
        code, said = self.end(launch, runs), launch.log.read_text(errors="replace")
        in_steps = moment in ("step", "evaluate", "checkpoint")
        expected = exit_codes.SAVED if in_steps else exit_codes.of_signal(number)
        self.expect(code == expected, f"{number.name} in {moment} gave {code} and not {expected}", launch)
        words = "go on with --resume" if in_steps else f"fastgrpo: ended by {number.name}"
        self.expect(said.count(words) == 1, f"it does not say {words!r} once", launch)
        self.expect("Traceback" not in said, "it shows a traceback", launch)

    # Streams

    def unheard_runs(self) -> None:
        """Standard output that is closed at the start, is full, or loses its reader or its terminal in the middle."""
        for name in ("closed", "full", "a pipe", "a terminal"):
            kind, runs = KINDS[0], self.runs(f"standard output is {name}")
            reader, stdout = _reader_and_stdout(name)
            launch = self.start(kind, runs, stdout=stdout)
            if stdout is not None:
                os.close(stdout)
            if reader is not None:
                self.wait_for(launch, lambda launch=launch, reader=reader: _drain(reader) or launch.times("step") >= 3)
                os.close(reader)
            self.expect(self.end(launch, runs) == 0, f"standard output is {name}: it did not end well", launch)
            self.expect("Traceback" not in launch.log.read_text(), "it shows a traceback", launch)
            self.compare(kind, runs, launch)
            self.done["streams"] += 1

    # Strangers

    def strange_runs(self) -> None:
        """Hostile peers at every port of a run, which hears of nobody but loopback, executes nothing and goes on."""
        os.environ[SECRET] = "known to the hostile peers too"
        for kind in KINDS:
            runs = self.runs(f"strangers, {kind.name}")
            # Steps of a real model's length: a run that ends before the strangers come shows nothing.
            launch, executed = self.start(kind, runs, hold="step"), runs / "executed"
            with contextlib.ExitStack() as visits, ThreadPoolExecutor() as crowd:
                if self.wait_for(launch, lambda launch=launch: launch.times("step") >= 2):
                    addresses = listening(launch)
                    for address in addresses:
                        self.done["ports"] += 1
                        self.expect(address[0] in ("127.0.0.1", "::1"), f"it listens on {address}", launch)
                    come = [visit(address, executed, os.environ[SECRET]) for address in addresses]
                    list(crowd.map(visits.enter_context, come))
                    self.expect(launch.poll() is None, "it ended before all strangers had come", launch)
                code = self.end(launch, runs)
            self.expect(code == 0, f"visited by strangers it ended with {code}", launch)
            self.expect(not executed.exists(), "what a stranger sent was executed", launch)
            said = launch.log.read_text()
            self.expect("Traceback" not in said, "it shows a traceback", launch)
            self.compare(kind, runs, launch)
        del os.environ[SECRET]


def _reader_and_stdout(name: str) -> tuple[int | None, int | None]:
    match name:
        case "closed":
            return None, None
        case "full":
            return None, os.open("/dev/full", os.O_WRONLY)
        case "a pipe":
            return os.pipe()
    return os.openpty()


def _drain(reader: int) -> None:
    """Reads what is there; a terminal that nobody reads would hold the run up."""
    while select.select([reader], [], [], 0)[0] and os.read(reader, 1 << 16):
        pass


def _reap() -> list[psutil.Process]:
    """The processes that are left, orphans too; those that have ended are forgotten."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return psutil.Process().children(recursive=True)


def _differences(folder: Path, other: Path) -> list[str]:
    def figures(of: Path) -> Any:
        return [{k: v for k, v in r.items() if k not in OF_ACCIDENTS} for r in results(of)]

    def rollouts(of: Path) -> Any:
        return JsonLines(of / "rollouts.jsonl").read()

    def summary(of: Path) -> Any:
        content = json.loads((of / "summary.json").read_text())
        return {k: v for k, v in content.items() if k not in (*OF_CLOCKS, "trackers")}

    def files(of: Path) -> Any:
        paths = (p.relative_to(of) for p in of.rglob("*") if p.is_file())
        return sorted(str(p) for p in paths if p.parts[0] not in OF_PROCESSES)

    found = [f.__name__ for f in (figures, rollouts, summary, files) if f(folder) != f(other)]
    ours, theirs = _weights(folder), _weights(other)
    return found + [name for name in theirs if not torch.equal(ours[name], theirs[name])]


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step_{STEPS:06d}" / "hf" / "model.safetensors")


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.campaign", description=__doc__)
    parser.add_argument("--kills", type=int, default=0, metavar="N", help="SIGKILLs at random moments")
    parser.add_argument("--signals", nargs="*", metavar="SIGNAL", help="announced ends: all of them, or these")
    parser.add_argument("--moments", nargs="*", default=["start", "load", "step", "evaluate", "checkpoint", "report"])
    parser.add_argument("--streams", action="store_true", help="standard output closed, gone, full")
    parser.add_argument("--strangers", action="store_true", help="hostile peers at every port")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the runs are; a temporary one")
    given = parser.parse_args()
    hear_all()
    adopt_orphans()
    mark_moments()
    began = time.monotonic()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="campaign_"))
    folder.mkdir(parents=True, exist_ok=True)
    campaign = Campaign(folder, random.Random(given.seed))
    campaign.begin()
    if given.signals is not None:
        campaign.signal_runs([signal.Signals[n] for n in given.signals] or ANNOUNCING, given.moments)
    if given.streams:
        campaign.unheard_runs()
    if given.strangers:
        campaign.strange_runs()
    if given.kills:
        campaign.kill_runs(given.kills)
    print(f"in {time.monotonic() - began:.0f} s: {', '.join(f'{n} {what}' for what, n in campaign.done.items())}")
    print(f"longest, in s, to the end: {', '.join(f'{who} {s:.1f}' for who, s in campaign.longest_s.items())}")
    for complaint in campaign.wrong:
        print(f"wrong: {complaint}")
    if not campaign.wrong and given.folder is None:
        shutil.rmtree(folder)
    return 1 if campaign.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
