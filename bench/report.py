"""The page of a run: how large it is, how long it takes to make, and how long until a browser shows its first chart.

The runs are made up: metrics of every kind with noise and spikes, and rollouts of some 4,000 characters. A browser,
headless Chromium, opens the page from the disk; the time is from the start of the navigation, as the page's own clock
has it, and is left out where there is no Chromium.
"""

import argparse
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench.harness import exit_code, print_table, reason, show_traceback, write_results
from fastgrpo.ranks.children import ending_with_parent

RUNS = {"40 steps": (40, 16), "4,380 steps": (4380, 16), "50,000 steps": (50_000, 1)}  # steps, rollouts a step
MADE_BAR_S = {"40 steps": 15.0, "4,380 steps": 15.0, "50,000 steps": 60.0}
OPENED_BAR_S, SIZE_BAR_BYTES = 2.0, 400_000
QUICK = {"40 steps": (40, 2), "400 steps": (400, 2)}
TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Page:
    made_s: float
    page_bytes: int
    bytes_without_rollouts: int
    first_chart_s: float | None = None
    all_charts_s: float | None = None
    rollouts_s: float | None = None


def main(argv: Sequence[str]) -> int:
    """Measures. Returns 1 if a page could not be made or opened."""
    parser = argparse.ArgumentParser(prog="bench report", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="short runs, no result is kept")
    options = parser.parse_args(argv)
    found: dict[str, Page] = {}
    failed: dict[str, str] = {}
    for name, (num_steps, rollouts_per_step) in (QUICK if options.quick else RUNS).items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                write_run(Path(folder), num_steps, rollouts_per_step)
                found[name] = measure(Path(folder))
            except Exception as error:  # the other runs are still measured
                show_traceback(error)
                failed[name] = reason(error)
    report(found, keep=not options.quick)
    return exit_code("report", failed)


def measure(folder: Path) -> Page:
    """Makes the page in a process of its own, as the command does, and opens it."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "fastgrpo.report", str(folder)], check=True, stdout=subprocess.DEVNULL)
    made_s = time.perf_counter() - started
    page = (folder / "report.html").read_text(encoding="utf-8")
    rollouts = re.search(r'id="records-data">(.*?)</script>', page)
    assert rollouts is not None
    opened = open_in_browser(folder / "report.html")
    return Page(made_s, len(page), len(page) - len(rollouts[1]), *opened)


def open_in_browser(page: Path) -> list[float]:
    """Seconds from the start of the navigation to the first chart, to all charts and to the rollouts; or nothing."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        return []
    # A copy says its times; the page itself would refuse the script.
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    say = """<script>shown_.then(() => {
      const drawn = performance.getEntriesByName("chart drawn").map((mark) => mark.startTime / 1000);
      console.log("opened " + JSON.stringify([drawn[0], drawn.at(-1), performance.now() / 1000]) + ".");
    });</script></body>"""
    copy = page.with_name("copy.html")
    copy.write_text(text.replace("</body>", say), encoding="utf-8")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
            f"--user-data-dir={profile}", "--enable-logging=stderr", "--window-size=1280,900",
            "--remote-debugging-port=0", copy.as_uri(),
        ]  # fmt: skip
        process = subprocess.Popen(
            ending_with_parent(command), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        timer = threading.Timer(TIMEOUT_S, process.kill)
        timer.start()
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if found := re.search(r"opened (\[.*?\])\.", line):
                    return json.loads(found[1])
        finally:
            timer.cancel()
            process.kill()
            process.wait()
    raise RuntimeError(f"{browser} did not show the page within {TIMEOUT_S:.0f} s")


def write_run(folder: Path, num_steps: int, rollouts_per_step: int) -> None:
    """A run that never ran."""
    noise = random.Random(0)
    phases = [{"first_step": num_steps // 2, "settings": {"rollout.group_size": 16}}]
    algorithm = {"phases": phases, "reference_reset": {"every_steps": max(1, num_steps // 6)}}
    settings = {f"setting.number_{i}": i for i in range(100)} | {"steps": num_steps}
    about = {"name": f"{num_steps} steps", "config": settings, "algorithm": algorithm}
    (folder / "run.json").write_text(json.dumps(about))
    with (folder / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps(_metrics(step, num_steps, noise)) + "\n" for step in range(1, num_steps + 1))
    with (folder / "rollouts.jsonl").open("w") as file:
        for step in range(1, num_steps + 1):
            file.writelines(json.dumps(_rollout(step, noise)) + "\n" for _ in range(rollouts_per_step))


def _metrics(step: int, num_steps: int, noise: random.Random) -> dict[str, Any]:
    learned = step / num_steps
    shares = ("accuracy", "truncated_frac", "zero_advantage_frac", "clip_frac", "logprob_diff_above_001_frac")
    times = ("rollout_s", "reward_s", "old_logprobs_s", "update_s", "drain_s", "sync_s")
    others = (
        "reward_std", "correction", "logprob_diff_p99", "updates", "staleness_mean", "staleness_max", "groups_kept",
        "groups_dropped_all_right", "groups_dropped_all_wrong", "sampling_rounds", "prompts_started", "engine_busy_s",
        "recipe/hedges", "recipe/steps", "reward/format", "reward/right",
    )  # fmt: skip
    spent = {name: abs(noise.gauss(30, 5)) for name in times}
    return {
        "step": step,
        "reward": 2 * learned - 1 + noise.gauss(0, 0.05),
        "response_length": 8000 - 3000 * learned + noise.gauss(0, 200),
        "entropy": 1.2 + noise.gauss(0, 0.03),
        "grad_norm": abs(noise.gauss(0.1, 0.02)) * (50 if noise.random() < 0.001 else 1),
        "rollout_kl": abs(noise.gauss(6e-4, 1e-4)),
        "reference_kl": abs(noise.gauss(1e-2, 1e-3)),
        "learning_rate": 1e-6,
        "total_tokens": 16_000_000 * step,
        "tokens_per_s": noise.gauss(28_000, 900),
        "verifier_failures": int(noise.random() < 0.02),
        "skipped_updates": 0,
        **{name: noise.random() for name in (*shares, *others)},
        **spent,
        "step_s": sum(spent.values()) + 1.0,
        **({"held_out_accuracy": learned, "held_out_greedy": learned} if step % 50 == 0 else {}),
    }


def _rollout(step: int, noise: random.Random) -> dict[str, Any]:
    """A made-up response, as hard to compress as a real one: words in no order."""
    words = " ".join(f"{noise.choice(_WORDS)} {noise.randrange(1000)}" for _ in range(noise.randrange(100, 600)))
    return {
        "step": step, "prompt": f"What is {noise.randrange(100)} times {noise.randrange(100)}?", "response": words,
        "answer": "42", "reward": noise.choice((1.0, -1.0)), "advantage": noise.gauss(0, 1),
        "num_response_tokens": len(words) // 3, "finish_reason": "stop",
    }  # fmt: skip


_WORDS = (
    "so",
    "we",
    "have",
    "that",
    "the",
    "sum",
    "of",
    "all",
    "is",
    "then",
    "it",
    "follows",
    "therefore",
    "let",
    "check",
)


def report(found: dict[str, Page], *, keep: bool) -> None:
    columns = ["run", "made, s", "page, bytes", "without rollouts", "first chart, s", "all charts, s", "rollouts, s"]
    print_table("the page of a run", columns, [[name, *asdict(page).values()] for name, page in found.items()])
    headline = []
    for name, page in found.items():
        headline.append([f"page made, {name}", f"{page.made_s:.1f} s", f"<= {MADE_BAR_S.get(name, 15.0):.0f} s"])
        size = f"{page.bytes_without_rollouts / 1000:,.0f} KB"
        headline.append([f"page without its rollouts, {name}", size, f"<= {SIZE_BAR_BYTES / 1000:,.0f} KB"])
        opened = "not measured" if page.first_chart_s is None else f"{page.first_chart_s:.2f} s"
        headline.append([f"first chart in Chromium, {name}", opened, f"<= {OPENED_BAR_S:.0f} s"])
    if keep:
        results = {name: asdict(page) for name, page in found.items()}
        print(f"written to {write_results('report', torch.device('cpu'), headline, results)}")
    for what, value, bar in headline:
        print(f"{what}: {value} (bar {bar})")
