"""Pairs of starts in one run folder: one goes on as if it were alone, the other is refused in words.

``python -m tests.folder_pairs --pairs 200``. It prints what it did; the exit code is 1 if anything was not as it must
be, and then the folders stay.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")  # before torch: forks lack threads

from fastgrpo.command_line import exit_codes
from fastgrpo.json_lines import JsonLines
from tests import tiny_recipe
from tests.conftest import TINY
from tests.forks import Fork, Launch, mark_moments
from tests.run.test_run import results

LIMIT_S = 300.0
STEPS = 6
SETTINGS = ("--steps", str(STEPS), "--checkpoint.every_steps", "2", "--evaluation.every_steps", "3")
OF_THE_COMMAND = ("resume", "overwrite")
OF_CLOCKS = ("train_s", "tokens_per_s")
REFUSED = re.compile(r"fastgrpo: (?P<folder>.*) is in use by process (?P<pid>\d+) on .*, since .*: wait until it ends")


@dataclass(frozen=True)
class Kind:
    """Two starts, what the folder holds before them, and when the second one comes."""

    name: str
    first: tuple[str, ...] = ()
    second: tuple[str, ...] = ()
    before: str = ""
    during: bool = False  # in the middle of the first one's run, or else within half a second


KINDS = (
    Kind("the same moment"),
    Kind("two seeds", second=("--seed", "2")),
    Kind("resume during a run", second=("--resume",), during=True),
    Kind("overwrite during a run", second=("--overwrite",), during=True),
    Kind("two resumes", first=("--resume",), second=("--resume",), before="half done"),
    Kind("two overwrites", first=("--overwrite",), second=("--overwrite", "--seed", "2"), before="seed 2"),
)


class Pairs:
    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder, self.chance = folder, chance
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.kept: dict[str, Path] = {}  # runs that were alone
        self.alone: dict[str, dict[str, Any]] = {}  # and what they hold, by seed

    def begin(self) -> None:
        base = self.folder / "base"
        made = Fork(lambda: tiny_recipe.prepare(tiny_recipe.config, base, lambda _: None) or 0)
        assert made.wait(LIMIT_S) == 0
        for name, more in [("seed 1", ()), ("seed 2", ("--seed", "2")), ("half done", ("--steps", "3"))]:
            runs = self.folder / f"alone, {name}"
            shutil.copytree(base, runs / "tiny" / "base")
            launch = self.start(runs, "alone", more)
            assert launch.wait(LIMIT_S) == 0, launch.log.read_text()
            self.kept[name] = runs / "tiny"
        self.alone = {seed: content(self.kept[f"seed {seed}"]) for seed in ("1", "2")}

    def start(self, runs: Path, name: str, more: Sequence[str]) -> Launch:
        self.done["launches"] += 1
        return Launch([str(TINY), "--runs_dir", str(runs), *SETTINGS, *more], 2, runs / f"{name}.log")

    def pair(self, kind: Kind) -> None:
        """One pair, in either order. One whose second start came after the first run's end shows nothing and is done
        once more."""
        if not kind.during and self.chance.random() < 0.5:
            kind = replace(kind, first=kind.second, second=kind.first)
        while not self._pair(kind):
            self.done["too late"] += 1

    def _pair(self, kind: Kind) -> bool:
        runs = self.folder / f"{self.done['launches']:04d} {kind.name}"
        shutil.copytree(self.kept[kind.before] if kind.before else self.folder / "base",
                        runs / "tiny" if kind.before else runs / "tiny" / "base")  # fmt: skip
        first = self.start(runs, "first", kind.first)
        if kind.during:
            moment, times = self.chance.choice([("start", 1), ("load", 1), *(("step", n) for n in (1, 2, 3))])
            while first.poll() is None and first.times(moment) < times:
                time.sleep(0.002)
        time.sleep(self.chance.choice([0.0, self.chance.uniform(0.0, 0.5)]))
        second = self.start(runs, "second", kind.second)
        first.wait(LIMIT_S)
        has_begun = any(mark["moment"] not in ("start", "load") for mark in second.marks())
        codes = first.returncode, second.wait(LIMIT_S)
        is_late = codes[0] == exit_codes.DONE and not has_begun and not REFUSED.search(second.log.read_text())
        if not is_late:
            self._judge(kind, runs, first, second, codes)
        if not any(str(runs) in complaint for complaint in self.wrong):
            shutil.rmtree(runs)
        return not is_late

    def _judge(self, kind: Kind, runs: Path, first: Launch, second: Launch, codes: tuple[int, int]) -> None:
        if sorted(codes) != [exit_codes.DONE, exit_codes.REFUSED]:
            self.complain(runs, f"the exit codes are {codes}")
            return
        winner, loser = (first, second) if codes[0] == exit_codes.DONE else (second, first)
        self.done[f"{kind.name}, won by {'first' if winner is first else 'second'}"] += 1
        said = loser.log.read_text()
        words = [line for line in said.splitlines() if line.startswith("fastgrpo:")]
        found = REFUSED.match(words[0]) if len(words) == 1 else None
        pids = {mark["pid"] for mark in winner.marks("start") if mark["rank"] == 0}
        if "Traceback" in said or not found or {int(found["pid"])} != pids or found["folder"] != str(runs / "tiny"):
            self.complain(runs, f"the refusal is {said!r}, and the winner's first rank is {pids}")
        settings = kind.first if winner is first else kind.second
        expected, is_there = self.alone["2" if "2" in settings else "1"], content(runs / "tiny")
        if differing := [name for name in expected if is_there[name] != expected[name]]:
            self.complain(runs, f"{', '.join(differing)} differ from those of a run alone")
        else:
            self.done["winners equal to a run alone"] += 1

    def complain(self, runs: Path, complaint: str) -> None:
        self.wrong.append(f"{runs}: {complaint}")
        print(self.wrong[-1], flush=True)


def content(folder: Path) -> dict[str, Any]:
    """What a run leaves, without clocks and paths."""
    facts = json.loads(
        (folder / "run.json").read_text().replace(str(folder), "RUN").replace(str(folder.parent), "RUNS")
    )
    summary = json.loads((folder / "summary.json").read_text()) if (folder / "summary.json").exists() else {}
    weights = sorted((folder / "checkpoints").rglob("*.safetensors"))
    files = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return {
        "metrics": results(folder),
        "rollouts": JsonLines(folder / "rollouts.jsonl").read(),
        "summary": {k: v for k, v in summary.items() if k not in OF_CLOCKS},
        "run.json": {**facts, "config": {k: v for k, v in facts["config"].items() if k not in OF_THE_COMMAND}},
        "weights": {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in weights},
        "files": sorted(str(p) for p in files),
    }


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.folder_pairs", description=__doc__)
    parser.add_argument("--pairs", type=int, default=len(KINDS), metavar="N", help="of each kind in turn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the runs are; a temporary one")
    given = parser.parse_args()
    mark_moments()
    began = time.monotonic()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="folder_pairs_"))
    pairs = Pairs(folder, random.Random(given.seed))
    pairs.begin()
    for number in range(given.pairs):
        pairs.pair(KINDS[number % len(KINDS)])
        if (number + 1) % 20 == 0:
            print(f"{number + 1} pairs, {len(pairs.wrong)} wrong, {time.monotonic() - began:.0f} s", flush=True)
    print(f"{given.pairs} pairs in {time.monotonic() - began:.0f} s: {dict(pairs.done)}")
    for complaint in pairs.wrong:
        print(f"wrong: {complaint}")
    if not pairs.wrong and given.folder is None:
        shutil.rmtree(folder)
    return 1 if pairs.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
