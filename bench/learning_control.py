"""Whether the quickstart learns, and does not learn when advantages are shuffled over the batch."""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.harness import ROOT, child_environment, exit_code, print_table, write_results
from bench.torchrun import run_to_end, torchrun

RANKS = 2
MAX_BEFORE, MAX_GREEDY_BEFORE, MIN_AFTER, MAX_CONTROL = 0.40, 0.50, 0.90, 0.45
QUICK_STEPS = 3
RUN_TIMEOUT_S = 1200


@dataclass(frozen=True)
class Outcome:
    name: str
    seed: int
    is_control: bool
    summary: dict[str, Any]

    @property
    def bars_met(self) -> bool:
        s = self.summary
        starts_low = s["accuracy_before"] <= MAX_BEFORE and s["greedy_before"] <= MAX_GREEDY_BEFORE
        ends = s["accuracy_after"] <= MAX_CONTROL if self.is_control else s["accuracy_after"] >= MIN_AFTER
        return starts_low and ends


def main(argv: Sequence[str]) -> int:
    """Runs both on the CPU with 2 ranks. Returns 1 if a run failed or, unless --quick, a bar was missed."""
    options = _options(argv)
    seeds = options.seeds[:1] if options.quick else options.seeds
    runs_dir = Path(options.runs_dir or tempfile.mkdtemp(prefix="learning-control-"))
    plan = [(f"seed-{s}", s, False) for s in seeds] + [(f"control-{s}", s, True) for s in options.control_seeds]
    outcomes: list[Outcome] = []
    failed: dict[str, str] = {}
    base: Path | None = None
    for name, seed, is_control in plan:
        print(f"bench: {name} ...", flush=True)
        summary = _run(name, seed, is_control, runs_dir, base, options.quick)
        if summary is None:
            failed[name] = "its last lines are above"
            continue
        base = base or runs_dir / name / "base"
        outcomes.append(Outcome(name, seed, is_control, summary))
    _report(outcomes, options.quick)
    if options.runs_dir is None:
        shutil.rmtree(runs_dir, ignore_errors=True)  # a run that failed may have made none
    bars_met = options.quick or all(o.bars_met for o in outcomes)
    return exit_code("learning_control", failed) or (0 if bars_met else 1)


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench learning_control", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--control_seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--quick", action="store_true", help=f"one seed, {QUICK_STEPS} steps: judges no bar")
    parser.add_argument("--runs_dir", help="keep the runs here; otherwise they are removed")
    return parser.parse_args(argv)


def _run(
    name: str, seed: int, is_control: bool, runs_dir: Path, base: Path | None, quick: bool
) -> dict[str, Any] | None:
    """The run's summary; None if it failed, and then its last lines are printed. The first run makes the base model."""
    if base is not None:
        shutil.copytree(base, runs_dir / name / "base", dirs_exist_ok=True)
    recipe = str(ROOT / "bench" / "shuffled_advantages.py") if is_control else "quickstart"
    command = torchrun(RANKS, "-m")
    command += ["fastgrpo.train", recipe, "--name", name, "--seed", str(seed), "--runs_dir", str(runs_dir)]
    command += ["--device", "cpu", "--overwrite", *(["--steps", str(QUICK_STEPS)] if quick else [])]
    try:
        done = run_to_end(command, child_environment(), RUN_TIMEOUT_S, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except subprocess.TimeoutExpired:
        print(f"bench: {name} took longer than {RUN_TIMEOUT_S} s", file=sys.stderr)
        return None
    if done.returncode != 0:
        print(f"bench: {name} failed with exit code {done.returncode}:\n{done.stderr[-4000:]}", file=sys.stderr)
        return None
    return json.loads((runs_dir / name / "summary.json").read_text())


def _report(outcomes: list[Outcome], quick: bool) -> None:
    fields = ("accuracy_before", "accuracy_after", "greedy_before", "greedy_after", "train_s")
    verdicts = ["not judged" if quick else ("yes" if o.bars_met else "NO") for o in outcomes]
    print_table(
        f"quickstart, {RANKS} ranks on CPU; bars: before <= {MAX_BEFORE:.2f} sampled and <= {MAX_GREEDY_BEFORE:.2f} "
        f"greedy, after >= {MIN_AFTER:.2f} sampled, control after <= {MAX_CONTROL:.2f} sampled",
        ("run", "seed", "sampled before", "after", "greedy before", "after", "train_s", "bars met"),
        [
            [o.name, o.seed, *(o.summary[f] for f in fields), verdict]
            for o, verdict in zip(outcomes, verdicts, strict=True)
        ],
    )
    if not quick:
        headline = [[o.name, f"{o.summary['accuracy_after']:.3f} sampled", _bar(o)] for o in outcomes]
        results = [{"name": o.name, "bars_met": o.bars_met, **o.summary} for o in outcomes]
        print(write_results("learning_control", torch.device("cpu"), headline, results))
    control = [o.summary["accuracy_after"] for o in outcomes if o.is_control]
    print("control accuracy " + " ".join(f"{a:.3f}" for a in control))


def _bar(outcome: Outcome) -> str:
    return f"<= {MAX_CONTROL:.2f}" if outcome.is_control else f">= {MIN_AFTER:.2f}"
