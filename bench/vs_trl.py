"""A training step of the quickstart beside TRL's GRPOTrainer on the same task, measured in turns.

Both sample the same number of responses of the same fixed length (the end token cannot end them) from the quickstart's
base model, score them with the same function, recompute old logprobs and make four optimizer updates in float32 on the
same cores. TRL uses the best settings of a sweep, which is part of the same run. Our time is the trainer's own
``step_s``; TRL's is from the beginning of the first update to the end of the last. Neither includes start-up,
checkpoints, evaluation or logging. The last line is ``ratio``, TRL's time divided by ours.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench import harness
from bench.torchrun import run_to_end, torchrun

GROUP_SIZE, UPDATES_PER_STEP, LEARNING_RATE, SEED = 8, 4, 2e-4, 1
TRL_STEP = harness.ROOT / "bench" / "peers" / "trl_step.py"
MEASUREMENT_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class TrlSettings:
    """TRL's settings that do not change what is computed."""

    processes: int = 2
    threads: int = 1
    gradient_accumulation_steps: int = 1
    attention: str = "sdpa"
    cache_implementation: str | None = None
    continuous_batching: bool = False
    torch_compile: bool = False


SWEEP: tuple[tuple[dict[str, Any], ...], ...] = (
    ({"processes": 1, "threads": 2}, {"processes": 1, "threads": 1}),
    ({"gradient_accumulation_steps": 2}, {"gradient_accumulation_steps": 4}),
    ({"cache_implementation": "static"},),
    ({"attention": "eager"},),
    ({"torch_compile": True},),
    ({"continuous_batching": True},),
)
"""The settings are varied one after another, each time from the best so far."""
QUICK_SWEEP = SWEEP[:1]


@dataclass(frozen=True)
class Task:
    base: Path  # the quickstart's model and data
    responses_per_step: int
    response_tokens: int
    warmup_steps: int
    steps: int  # that are measured

    @property
    def tokens_per_step(self) -> int:
        return self.responses_per_step * self.response_tokens


class MeasurementError(RuntimeError):
    """One side did not run, or did not do the required work."""


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    # The link is not resolved: Python finds its virtual environment by the place of the link.
    trl_python = Path(options.trl_python).absolute()
    if not trl_python.exists():
        print(f"vs_trl: no {options.trl_python}: make TRL's environment, or give --trl-python", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        task = Task(
            make_base(Path(scratch), options.model), options.responses, options.response_tokens, 2, options.steps
        )
        num_prompt_tokens = prompt_tokens(task.base)
        dimensions = () if options.no_sweep else QUICK_SWEEP if options.quick else SWEEP
        best, swept = sweep(task, trl_python, dimensions, num_prompt_tokens)
        rounds = [
            one_round(task, trl_python, best, num_prompt_tokens, number) for number in range(1, options.rounds + 1)
        ]
    results = report(task, best, swept, rounds)
    if not options.quick:  # a quick run must not replace a measurement
        headline = [
            ("quickstart step, s", median_of(rounds, "ours"), None),
            ("TRL's step / ours", results["ratio"], median_of(rounds, "trl")),
        ]
        subject = "vs_trl_trained" if options.model else "vs_trl"
        print(f"vs_trl: {harness.write_results(subject, torch.device('cpu'), headline, results)}")
    print(f"ratio {results['ratio']:.1f}")
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench vs_trl", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--trl-python", default=str(harness.ROOT / ".venv-trl" / "bin" / "python"))
    parser.add_argument("--responses", type=int, default=1024, help="responses of a step")
    parser.add_argument("--response-tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3, help="pairs of measurements, ours and TRL's in turns")
    parser.add_argument("--steps", type=int, default=7, help="steps of a measurement that count, after two that do not")
    parser.add_argument("--quick", action="store_true", help="one round of three steps after a small sweep")
    parser.add_argument("--model", help="a trained model to go on from, as checkpoints/step_000040/hf of a quickstart")
    parser.add_argument("--no-sweep", action="store_true", help="TRL at 2 processes x 1 thread with its defaults")
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds, options.steps = 1, 3
    if options.responses % (GROUP_SIZE * UPDATES_PER_STEP * 8):
        parser.error(f"--responses must be a multiple of {GROUP_SIZE * UPDATES_PER_STEP * 8}")
    return options


def make_base(folder: Path, trained_model: str | None = None) -> Path:
    """Makes in ``folder`` the quickstart's problems, tokenizer and base model, or a trained model instead."""
    from recipes import quickstart

    if trained_model:
        shutil.copytree(trained_model, folder / "base" / "model")
    quickstart.prepare(quickstart.config, folder / "base", lambda text: print(text, flush=True))
    return folder / "base"


def prompt_tokens(base: Path) -> int:
    """The number of tokens of all training problems, as our trainer encodes them; TRL must read as many."""
    from fastgrpo.data import encode, load_problems, load_tokenizer
    from recipes.quickstart import config

    problems = load_problems(str(base / "train.jsonl"), config.data.suffix)
    tokenizer = load_tokenizer(str(base / "model"), False)
    encoded = encode(problems, tokenizer, chat_template=True, max_prompt_tokens=config.data.max_prompt_tokens)
    return sum(len(prompt.prompt_ids) for prompt in encoded)


def sweep(
    task: Task, python: Path, dimensions: Sequence[Sequence[dict[str, Any]]], num_prompt_tokens: int
) -> tuple[TrlSettings, list[dict[str, Any]]]:
    """TRL's fastest settings, by the fastest step of short measurements, and all measurements."""
    short = replace(task, warmup_steps=1, steps=3)
    tried: list[dict[str, Any]] = []

    def fastest_step(settings: TrlSettings) -> float:
        limit_s = 300.0 if not tried else 60.0 + 5 * short.steps * min(t["step_s"] or 1e9 for t in tried)
        try:
            seconds = min(trl_steps(short, python, settings, num_prompt_tokens, limit_s)["step_s"])
            tried.append({**asdict(settings), "step_s": seconds})
        except MeasurementError as error:
            tried.append({**asdict(settings), "step_s": None, "error": str(error)})
            seconds = float("inf")
        print(f"vs_trl: sweep: {changed(settings)}: {harness.shown(tried[-1]['step_s'])} s", flush=True)
        return seconds

    best = TrlSettings()
    best_s = fastest_step(best)
    for alternatives in dimensions:
        for settings in [replace(best, **alternative) for alternative in alternatives]:
            if (seconds := fastest_step(settings)) < best_s:
                best, best_s = settings, seconds
    if best_s == float("inf"):
        raise MeasurementError(f"TRL ran with none of its settings: {tried[0]['error']}")
    return best, tried


def changed(settings: TrlSettings) -> str:
    """All settings of TRL in one line."""
    parts = [
        f"{settings.processes} x {settings.threads} threads",
        f"accumulation {settings.gradient_accumulation_steps}",
    ]
    parts += [settings.attention, f"cache {settings.cache_implementation or 'dynamic'}"]
    parts += [name for name in ("continuous_batching", "torch_compile") if getattr(settings, name)]
    return ", ".join(parts)


def one_round(task: Task, python: Path, best: TrlSettings, num_prompt_tokens: int, number: int) -> dict[str, Any]:
    """Times of our steps, TRL's, and ours with the sampler's logprobs as old ones, measured one after the other."""
    ours = our_steps(task, "recomputed")
    trl = trl_steps(task, python, best, num_prompt_tokens, MEASUREMENT_TIMEOUT_S)
    cheaper = our_steps(task, "rollout")
    times = {
        "ours": ours["step_s"],
        "trl": trl["step_s"],
        "ours_rollout_logprobs": cheaper["step_s"],
    }
    medians = {name: statistics.median(steps) for name, steps in times.items()}
    print(f"vs_trl: round {number}: " + ", ".join(f"{n} {s:.3f} s" for n, s in medians.items()), flush=True)
    return {"step_s": times, "median_s": medians, "ours_phases_s": ours["phases"], "trl_versions": trl["versions"]}


def our_steps(task: Task, old_logprobs: str) -> dict[str, Any]:
    """The seconds of each measured step, from the run's own metrics, and the medians of its phases."""
    with tempfile.TemporaryDirectory() as runs:
        settings = {
            "runs_dir": runs,
            "name": "ours",
            "steps": task.warmup_steps + task.steps,
            "seed": SEED,
            "device": "cpu",
            "model.path": task.base / "model",
            "data.train": task.base / "train.jsonl",
            "data.held_out": "",
            "data.prompts_per_step": task.responses_per_step // GROUP_SIZE,
            "rollout.group_size": GROUP_SIZE,
            "rollout.max_response_tokens": task.response_tokens,
            "objective.old_logprobs": old_logprobs,
            "optimizer.learning_rate": LEARNING_RATE,
            "optimizer.updates_per_step": UPDATES_PER_STEP,
            "checkpoint.every_steps": 0,
        }
        # The recipe looks for its base in the run folder, and would make it again if it were not there.
        Path(runs, "ours").mkdir()
        Path(runs, "ours", "base").symlink_to(task.base, target_is_directory=True)
        flags = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
        command = torchrun(2, "-m", "fastgrpo.train", "quickstart", *flags, "--rollout.ignore_eos")
        run(command, threads=1, timeout_s=MEASUREMENT_TIMEOUT_S)
        lines = Path(runs, "ours", "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines][task.warmup_steps :]
    require("our responses", {r["response_length"] for r in records}, {float(task.response_tokens)})
    require("our updates", records[-1]["updates"], UPDATES_PER_STEP * (task.warmup_steps + task.steps))
    phases = ("rollout_s", "reward_s", "old_logprobs_s", "update_s", "sync_s")
    medians = {name: statistics.median(r[name] for r in records) for name in phases if name in records[0]}
    return {"step_s": [r["step_s"] for r in records], "phases": medians}


def trl_steps(
    task: Task, python: Path, settings: TrlSettings, num_prompt_tokens: int, timeout_s: float
) -> dict[str, Any]:
    from recipes.quickstart import config

    num_steps = task.warmup_steps + task.steps
    with tempfile.TemporaryDirectory() as scratch:
        order, answer = Path(scratch, "task.json"), Path(scratch, "result.json")
        content = {
            "model": str(task.base / "model"),
            "train": str(task.base / "train.jsonl"),
            "suffix": config.data.suffix,
            "scratch": scratch,
            "seed": SEED,
            "num_steps": num_steps,
            "updates_per_step": UPDATES_PER_STEP,
            "group_size": GROUP_SIZE,
            "responses_per_step": task.responses_per_step,
            "response_tokens": task.response_tokens,
            "learning_rate": LEARNING_RATE,
            "settings": asdict(settings),
        }
        order.write_text(json.dumps(content))
        start = torchrun(settings.processes, python=str(python)) if settings.processes > 1 else [str(python)]
        run([*start, str(TRL_STEP), str(order), str(answer)], threads=settings.threads, timeout_s=timeout_s)
        result = json.loads(answer.read_text())
    require("TRL's responses", set(result["responses_per_step"]), {task.responses_per_step})
    require("TRL's tokens", set(result["tokens_per_step"]), {task.tokens_per_step})
    require("TRL's updates", result["updates"], UPDATES_PER_STEP * num_steps)
    require("TRL's old logprobs recomputed", result["old_logprobs_recomputed"], True)
    require("TRL's prompt tokens", result["prompt_tokens"], num_prompt_tokens)
    return {**result, "step_s": result["step_s"][task.warmup_steps :]}


def require(what: str, got: Any, wanted: Any) -> None:
    if got != wanted:
        raise MeasurementError(f"{what}: wanted {wanted}, got {got}: the two sides would not do the same work")


def run(command: Sequence[str], threads: int, timeout_s: float) -> None:
    """Runs a command, and ends all of its processes at the limit. Raises MeasurementError with its last lines."""
    environment = harness.child_environment() | {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryFile("w+") as output:
        try:
            code = run_to_end(command, environment, timeout_s, stdout=output, stderr=output).returncode
        except subprocess.TimeoutExpired:
            raise MeasurementError(f"took longer than {timeout_s:.0f} s") from None
        output.seek(0)
        words = [line for line in output.read().splitlines() if "Error" in line] or [f"exit code {code}"]
    if code != 0:
        raise MeasurementError(words[0].strip())


def median_of(rounds: list[dict[str, Any]], name: str) -> float:
    return statistics.median(r["median_s"][name] for r in rounds)


def report(task: Task, best: TrlSettings, swept: list[dict[str, Any]], rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Prints the tables. Returns the content of the results file."""
    tries = [(changed(TrlSettings(**{k: t[k] for k in asdict(best)})), t["step_s"], t.get("error", "")) for t in swept]
    harness.print_table("TRL's own settings: seconds of the fastest step", ("settings", "s", "failed"), tries)
    names = {
        "ours": "fastgrpo, 2 processes x 1 thread",
        "trl": f"TRL {rounds[0]['trl_versions']['trl']}, {changed(best)}",
        "ours_rollout_logprobs": "fastgrpo, --objective.old_logprobs rollout",
    }
    rows = []
    for name, label in names.items():
        ratios = [r["median_s"]["trl"] / r["median_s"][name] for r in rounds]
        seconds = median_of(rounds, name)
        rows.append((label, seconds, task.tokens_per_step / seconds, " ".join(f"{x:.2f}" for x in ratios)))
    shape = f"{task.responses_per_step} responses of {task.response_tokens} tokens, {UPDATES_PER_STEP} updates, float32"
    columns = ("trainer", "s a step", "tokens/s", "TRL / this, by round")
    harness.print_table(f"one step: {shape}, {harness.num_cores()} cores", columns, rows)
    return {
        "task": {k: v for k, v in asdict(task).items() if k != "base"},
        "trl_settings": asdict(best),
        "sweep": swept,
        "rounds": rounds,
        "ratio": statistics.median(r["median_s"]["trl"] / r["median_s"]["ours"] for r in rounds),
    }
