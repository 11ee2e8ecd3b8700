"""Whether a step with staleness 1 takes as long as the longer of its two phases; a synchronous step takes both.

This is the real run on a CPU, with a vLLM server of its own. Trainer and server have a core each in both modes. The
verifier's process is on the trainer's core and counts as the trainer's.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench import vllm_models
from bench.harness import ROOT, child_environment, print_table, spread_frac, write_results
from fastgrpo.ranks.children import ending_with_parent

SYNCHRONOUS, OVERLAPPED = 0, 1  # --rollout.max_staleness
BAR = 1.15
WARMUP_STEPS = 2  # with staleness 1 the first step draws the responses of two
TIMEOUT_S = 600.0
RECIPE = ROOT / "bench" / "overlap_recipe.py"
QUICK_SIZES = ["--data.prompts_per_step", "4", "--rollout.max_response_tokens", "8"]

Step = dict[str, float]


class RunFailed(RuntimeError):
    """A run ended with an error or did not end; the message has its last lines."""


def main(argv: Sequence[str]) -> int:
    """Measures. Returns 1 if a run failed. Without vLLM, it prints that nothing is measured."""
    options = _options(argv)
    reason = vllm_models.why_no_vllm()
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        reason = "trainer and server need a core each, this process may use one"
    if reason:
        print(f"overlap is not measured: {reason}")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        try:
            steps = measure(options, Path(folder), cores)
        except RunFailed as error:
            print(f"bench overlap: {error}", file=sys.stderr)
            return 1
    report(figures(steps), options)
    return 0


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench overlap", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one round of few steps, no result is kept")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each mode, in turns")
    parser.add_argument("--steps", type=int, default=8, help=f"of a run, {WARMUP_STEPS} of warm-up besides")
    options = parser.parse_args(argv)
    if min(options.rounds, options.steps) < 1:
        parser.error("--rounds and --steps must be at least 1")
    if options.quick:
        options.rounds, options.steps = 1, 2
    return options


def measure(options: argparse.Namespace, folder: Path, cores: Sequence[int]) -> dict[int, list[Step]]:
    """The steps of every mode after the warm-up, where runs of the modes take turns. Raises RunFailed."""
    steps: dict[int, list[Step]] = {SYNCHRONOUS: [], OVERLAPPED: []}
    base: Path | None = None
    for number in range(options.rounds):
        for staleness, found in steps.items():
            name = f"staleness_{staleness}_{number}"
            if base is not None:
                shutil.copytree(base, folder / name / "base")
            settings = ["--rollout.max_staleness", str(staleness), *(QUICK_SIZES if options.quick else [])]
            found += run(folder, name, settings, options.steps, cores)
            base = base or folder / name / "base"
    return steps


def run(folder: Path, name: str, settings: Sequence[str], num_steps: int, cores: Sequence[int]) -> list[Step]:
    """Runs two ranks, one that trains and one that samples, each pinned to its core with all its children."""
    from fastgrpo.ranks.launch import free_port

    arguments = [str(RECIPE), "--runs_dir", str(folder), "--name", name, "--steps", str(num_steps + WARMUP_STEPS)]
    port, log = free_port(), folder / f"{name}.log"
    children = []
    with log.open("wb") as output:
        for rank, core in enumerate(cores):
            ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": len(cores), "LOCAL_WORLD_SIZE": len(cores)}
            environment = child_environment() | {k: str(v) for k, v in ranks.items()} | {"MASTER_PORT": str(port)}
            children.append(
                subprocess.Popen(
                    ending_with_parent(
                        ["taskset", "-c", str(core), sys.executable, "-m", "fastgrpo.train", *arguments, *settings]
                    ),
                    cwd=ROOT,
                    env=environment | {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )
    _wait(children, log, folder / name)
    records = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    return [_step(r) for r in records if r["step"] > WARMUP_STEPS]


def _wait(children: Sequence["subprocess.Popen[bytes]"], log: Path, run_dir: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while (codes := [c.poll() for c in children]) != [0] * len(children):
        if any(codes) or time.monotonic() > deadline:
            for child in children:
                child.kill()
                child.wait()
            logs = [log, *sorted(run_dir.glob("engines/*.log"))]
            words = "\n".join(f"{file.name}: ...{file.read_text(errors='replace')[-1500:]}" for file in logs)
            raise RunFailed(f"exit codes {codes} within {TIMEOUT_S:.0f} s\n{words}")
        time.sleep(0.1)


def _step(record: dict[str, Any]) -> Step:
    return {
        "step_s": record["step_s"],
        "sample_s": record["rollout_s"],
        "train_s": record["step_s"] - record["rollout_s"],
        "sync_s": record["sync_s"],
        "staleness": float(record["staleness_max"]),
    }


def figures(steps: dict[int, list[Step]]) -> dict[str, Any]:
    """Medians over the steps. The phases' times are from the synchronous run, where nothing runs beside them."""

    def median(staleness: int, name: str) -> float:
        return statistics.median(s[name] for s in steps[staleness])

    assert all(s["staleness"] == staleness for staleness, found in steps.items() for s in found)
    sample_s, train_s = median(SYNCHRONOUS, "sample_s"), median(SYNCHRONOUS, "train_s")
    overlapped_s, longer_s = median(OVERLAPPED, "step_s"), max(sample_s, train_s)
    return {
        "sample_s": sample_s,
        "train_s": train_s,
        "sync_s": median(SYNCHRONOUS, "sync_s"),
        "sum_s": sample_s + train_s,
        "synchronous_step_s": median(SYNCHRONOUS, "step_s"),
        "overlapped_step_s": overlapped_s,
        "longer_phase_s": longer_s,
        "overlapped_of_longer": overlapped_s / longer_s,
        "synchronous_of_sum": median(SYNCHRONOUS, "step_s") / (sample_s + train_s),
        "synchronous_spread_frac": spread_frac([s["step_s"] for s in steps[SYNCHRONOUS]]),
        "overlapped_spread_frac": spread_frac([s["step_s"] for s in steps[OVERLAPPED]]),
        "steps": len(steps[OVERLAPPED]),
    }


def report(found: dict[str, Any], options: argparse.Namespace) -> None:
    rows = [
        ["sampling, by itself", found["sample_s"], None],
        [f"training, by itself ({found['sync_s']:.2g} s of it weight sync)", found["train_s"], None],
        ["sum of the phases", found["sum_s"], None],
        ["synchronous step", found["synchronous_step_s"], f"{found['synchronous_spread_frac']:.0%}"],
        ["longer phase", found["longer_phase_s"], None],
        ["overlapped step", found["overlapped_step_s"], f"{found['overlapped_spread_frac']:.0%}"],
    ]
    title = f"a step with a vLLM server, medians of {found['steps']} steps, a core for each process"
    print_table(title, ("what", "s", "spread"), rows)
    ratio = found["overlapped_of_longer"]
    if not options.quick:
        value = f"{found['overlapped_step_s']:.3g} s, {ratio:.3g}x the longer phase"
        limit = f"phases {found['sample_s']:.3g} and {found['train_s']:.3g} s, bar {BAR:g}x"
        print(write_results("overlap", torch.device("cpu"), [["step with staleness 1", value, limit]], found))
    print(f"synchronous step over the sum of the phases: {found['synchronous_of_sum']:.3g}")
    print(f"overlapped step over the longer phase: {ratio:.3g}, bar {BAR:g}")
