"""Whether the verifier pool reaches 80 % of the cores times the rate of a bare call, and leaves the trainer its time.

The same responses are judged repeatedly, in turns by bare calls in this process and by a pool with a process per core.
Then the cost to the calling process is measured: the share of a core that the pool takes in it, and how much of a
loop's rate is left beside a pool that always has a job and one core less. A call of ``strict_boxed`` takes less than a
microsecond, which is less than sending a response to another process: no pool reaches the bar with it, and its
microseconds for each item are what counts. Last comes the trainer's whole step with a reward of 50 ms beside the same
step with one of no time (`bench/judged_steps.py`).
"""

import argparse
import json
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench import judged_steps
from bench.harness import (
    ROOT,
    exit_code,
    interleaved,
    num_cores,
    print_table,
    reason,
    show_traceback,
    spread_frac,
    write_results,
)

CASES = ROOT.parent / "shared" / "data" / "verifier" / "math_answers_sample_cases.jsonl"
BAR = 0.8
TIMEOUT_S, MEMORY_LIMIT_GIB = 10.0, 2.0
CPU = torch.device("cpu")
TRAINER_S = {"full": 3.0, "quick": 0.3}
VERIFIERS = {"strict_boxed": (1280, 200), "math_verify": (5, 1)}  # how often 160 cases are repeated; --quick

Item = tuple[str, str]


@dataclass(frozen=True)
class Rates:
    """The rates of a verifier, in items a second for each round."""

    bare: list[float]
    pool: list[float]
    core_frac: float  # of a core that the pool takes in the calling process
    trainer_kept_frac: float  # of a loop's rate in the calling process, one core left to it

    @property
    def ratio(self) -> float:
        """The pool's rate divided by the cores times the bare rate: the median over rounds of two runs in a row."""
        return statistics.median(p / (num_cores() * b) for b, p in zip(self.bare, self.pool, strict=True))

    @property
    def us_an_item(self) -> float:
        return 1e6 / statistics.median(self.pool)


def main(argv: Sequence[str]) -> int:
    """Measures. Returns 1 if a verifier failed. Without the judged responses it prints that nothing is measured."""
    options = _options(argv)
    if not options.cases.exists():
        print(f"rewards is not measured: it needs the judged responses in {options.cases}")
        return 0
    items = read_cases(options.cases)
    found: dict[str, Rates] = {}
    failed: dict[str, str] = {}
    for name in VERIFIERS:
        try:
            found[name] = measure(name, items, options)
        except Exception as error:  # the other verifiers are still measured
            show_traceback(error)
            failed[name] = reason(error)
    steps: judged_steps.Steps | None = None
    try:
        steps = judged_steps.measure(judged_steps.QUICK if options.quick else judged_steps.FULL)
    except Exception as error:
        show_traceback(error)
        failed["judged_steps"] = reason(error)
    report(found, steps, len(items), options)
    return exit_code("rewards", failed)


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench rewards", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one round of few items, no result is kept")
    parser.add_argument("--rounds", type=int, default=5, help="of a bare run and a pool run, in turns")
    parser.add_argument("--cases", type=Path, default=CASES, help="jsonl with solutions and generateds")
    options = parser.parse_args(argv)
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if options.quick:
        options.rounds = 1
    return options


def read_cases(path: Path) -> list[Item]:
    items = []
    for line in path.read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        answer = case["solutions"][0].removeprefix("\\boxed{").removesuffix("}")
        items += [(response, answer) for response in case["generateds"]]
    return items


def measure(name: str, cases: Sequence[Item], options: argparse.Namespace) -> Rates:
    """The rates of bare calls and of the pool in turns, then the trainer's share.

    Raises AssertionError if the two judge differently.
    """
    import fastgrpo.rewards
    from fastgrpo.rewards import VerifierPool, self_test_of

    verifier: Callable[[str, str], Any] = getattr(fastgrpo.rewards, name)
    items = list(cases) * VERIFIERS[name][1 if options.quick else 0]
    name_of_all, limits = f"fastgrpo.rewards:{name}", (TIMEOUT_S, MEMORY_LIMIT_GIB, self_test_of(verifier))
    with VerifierPool(name_of_all, num_cores(), *limits) as pool:
        assert [verdict.correct for verdict in pool.score(cases)] == [verifier(*item) for item in cases]
        works = {
            "bare": lambda: [verifier(response, answer) for response, answer in items],
            "pool": lambda: pool.score(items),
        }
        seconds = interleaved(works, CPU, rounds=options.rounds, warmup_s=0.0 if options.quick else 0.5)
        cpu_s = time.process_time()
        started = time.perf_counter()
        pool.score(items)
        core_frac = (time.process_time() - cpu_s) / (time.perf_counter() - started)
    with VerifierPool(name_of_all, max(1, num_cores() - 1), *limits) as pool:
        kept = trainer_kept(lambda: pool.submit(items), TRAINER_S["quick" if options.quick else "full"])
    rates = {way: [len(items) / s for s in times] for way, times in seconds.items()}
    return Rates(rates["bare"], rates["pool"], core_frac, kept)


def trainer_kept(submit: Callable[[], Any], seconds: float) -> float:
    """The share of a loop's rate in this thread that is left while the pool always has a job."""
    alone = loops_per_s(seconds)
    done = threading.Event()

    def keep_busy() -> None:
        while not done.is_set():
            submit().result()

    feeder = threading.Thread(target=keep_busy)
    feeder.start()
    beside = loops_per_s(seconds)
    done.set()
    feeder.join()
    return beside / alone


def loops_per_s(seconds: float) -> float:
    """The rate of small matmuls, which release the interpreter lock as the kernel launches of a trainer do."""
    a = torch.ones(128, 128)
    started, loops = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        a @ a
        loops += 1
    return loops / (time.perf_counter() - started)


def report(
    found: dict[str, Rates], steps: judged_steps.Steps | None, num_cases: int, options: argparse.Namespace
) -> None:
    cores = num_cores()
    columns = [
        "verifier",
        "bare call, items/s",
        "pool, items/s",
        "pool, us an item",
        "spread",
        "caller's core",
        "loop keeps",
        "ratio",
    ]
    rows = [
        [
            name,
            statistics.median(rates.bare),
            statistics.median(rates.pool),
            rates.us_an_item,
            f"{100 * spread_frac(rates.pool):.0f} %",
            f"{100 * rates.core_frac:.0f} %",
            f"{100 * rates.trainer_kept_frac:.0f} %",
            rates.ratio,
        ]
        for name, rates in found.items()
    ]
    print_table(f"{num_cases} judged responses repeated, {cores} cores and as many processes", columns, rows)
    if steps is not None:
        names = ["reward", "step, s", "sampling", "waiting for verdicts", "step / that of 0 ms", "spread"]
        title = f"steps of {len(steps.lengths)} responses of {steps.described_lengths} tokens"
        print_table(title, names, judged_steps.rows_of(steps))
    headline = [[f"pool / ({cores} x bare call), {name}", f"{r.ratio:.2f}", f">= {BAR}"] for name, r in found.items()]
    headline += judged_steps.headline_of(steps) if steps is not None else []
    if not options.quick:
        results: dict[str, Any] = {name: vars(rates) | {"ratio": rates.ratio} for name, rates in found.items()}
        if steps is not None:
            results["judged_steps"] = steps.facts()
        print(f"written to {write_results('rewards', CPU, headline, results)}")
    for what, value, bar in headline:
        print(f"{what}: {value}{f' (bar {bar})' if bar else ''}")
