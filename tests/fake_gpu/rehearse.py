"""``python -m bench gpu`` on a GPU that is not there, without a network: all that is not a number or a time is true.

``python -m tests.fake_gpu.rehearse [--gpu h100|h200] [STEP ...]`` shows the answers, what is off, and peaks.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from shutil import which
from typing import Any

from bench.gpu.command import choose
from bench.gpu.record import Answer, Record
from bench.gpu.steps import Step, steps
from tests.fake_gpu.environment import ROOT, WHEELS, environment

_ERROR = r"\w+ (?:nan|inf|[0-9.e+-]+)(?: above [0-9.e+-]+)?"
_VERDICTS = "|".join(
    (rf"{_ERROR}(?:; {_ERROR})*", ".*the live weights are not those.*", ".*its logprobs are not finite")
)
BY_VALUE = re.compile(_VERDICTS)
"""The whole of a reason that speaks of values, which mean nothing here, and of no error."""
MAY_BE_SKIPPED = {"compute-sanitizer", "ncu", "two GPUs", "vllm"}
READ_AS_VALUES = {"quickstart on the GPU"}
"""Steps that act on what was sampled: every tensor gets memory of its own, which is 0 and so a token."""
PEAKS = (
    # results file, row, field, bar in bytes: that of the project, or what the rehearsal has shown and should not lose
    ("linear_grpo", "ours", "peak_bytes", 2.3e9),
    ("linear_grpo", "ours, cuBLAS logits", "peak_bytes", 2.3e9),
    ("tokens_per_s", "prime_rl update", "peak_allocated_gib", 14 * 2**30),
    ("tokens_per_s", "1.5B 16k compiled update", "peak_allocated_gib", 60 * 2**30),
    ("tokens_per_s", "1.5B 16k checkpointed update", "peak_allocated_gib", 28 * 2**30),
    ("tokens_per_s", "1.5B 16k update", "peak_allocated_gib", 72 * 2**30),
    ("memory", "packed_chunked, checkpointed", "peak_gib", 20 * 2**30),
    ("memory", "packed_chunked, all activations kept", "peak_gib", 60 * 2**30),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 if a step ended in anything but its values, was not reached, or a peak is above its bar."""
    parser = argparse.ArgumentParser(prog="python -m tests.fake_gpu.rehearse", description=__doc__)
    parser.add_argument("steps", nargs="*", help="groups or names of steps; default: all")
    parser.add_argument("--gpu", default="h100", choices=("h100", "h200"))
    parser.add_argument(
        "--folder", type=Path, help="of record, log and results; made anew; default: build/rehearsal/GPU"
    )
    options = parser.parse_args(argv)
    folder = (options.folder or ROOT / "build" / "rehearsal" / options.gpu).absolute()
    chosen = choose(steps(2), options.steps)
    subprocess.run(["rm", "-rf", str(folder)], check=True)
    print(
        "on this device values and times mean nothing: a step that failed by its values alone did what it can",
        flush=True,
    )
    if any(s.name == "kernel_launches" for s in chosen):
        _compile_ahead(options.gpu)
    for names, caching in _calls(chosen):
        _run(names, folder, options.gpu, caching)
    record = Record(folder / "gpu", None)
    wrong = [*_wrong_answers(chosen, record), *_wrong_files(folder / "out"), *_wrong_peaks(chosen, record)]
    for line in wrong:
        print(f"rehearsal on {options.gpu}: {line}", file=sys.stderr)
    ended = sum(s.name in record.answers for s in chosen)
    print(f"rehearsal on {options.gpu}: {ended} of {len(chosen)} steps ended, {len(wrong)} things are off")
    return 1 if wrong else 0


def _calls(chosen: Sequence[Step]) -> Iterator[tuple[list[str], bool]]:
    """Names of steps for each call of the runner, and whether torch may give out memory again."""
    yield [s.name for s in chosen if s.name not in READ_AS_VALUES], True
    if acting := [s.name for s in chosen if s.name in READ_AS_VALUES]:
        yield acting, False


def _run(names: Sequence[str], folder: Path, gpu: str, caching: bool) -> None:
    variables = environment(gpu) | {"PYTEST_ADDOPTS": "-p tests.fake_gpu.pytest_plugin"}
    for name in ("PYTHONPATH", "VIRTUAL_ENV"):
        variables.pop(name, None)
    if not caching:
        variables["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    command = [sys.executable, "-m", "bench", "gpu", *names, "--folder", str(folder / "gpu"), "--processes", "2"]
    command += ["--out", str(folder / "out"), "--carried", str(WHEELS), "--budget_s", "900"]
    subprocess.run([*_without_network(), *command], cwd=ROOT, env=variables, check=False)


def _compile_ahead(gpu: str) -> None:
    """Two cores and an empty cache would take longer than a step may: times mean nothing here."""
    command = [sys.executable, "-m", "tests.fake_gpu.run", "--gpu", gpu, sys.executable, "-m", "bench", "--results"]
    command += [str(ROOT / "build" / "rehearsal" / "ahead"), "kernel_launches", "--device", "cuda", "--uncompared"]
    subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.DEVNULL)


def _without_network() -> list[str]:
    """A network namespace in which loopback alone is up; nothing where this user may not make one, which is said."""
    inside = ["unshare", "--net", "--map-root-user"] if os.geteuid() else ["unshare", "--net"]
    up = 'ip link set lo up && exec "$@"'
    try:
        possible = which("ip") is not None and not subprocess.run([*inside, "true"], capture_output=True).returncode
    except OSError:
        possible = False
    if not possible:
        print("rehearsal: no network namespace can be made here, so the network stays on", file=sys.stderr)
        return []
    return [*inside, "bash", "-c", up, "bash"]


def _wrong_answers(chosen: Sequence[Step], record: Record) -> Iterator[str]:
    for step in chosen:
        answer = record.answers.get(step.name)
        if answer is None:
            yield f"{step.name} was not reached"
        elif answer.state == "skipped" and (step.needs is None or step.needs.name not in MAY_BE_SKIPPED):
            yield f"{step.name} was skipped: {answer.why}"
        elif answer.state == "failed" and not _by_values_alone(answer):
            yield f"{step.name} failed: " + "; ".join(r for r in _reasons(answer) if not BY_VALUE.fullmatch(r))


def _reasons(answer: Answer) -> list[str]:
    return list(answer.failed_rows.values()) or [answer.why]


def _by_values_alone(answer: Answer) -> bool:
    return all(BY_VALUE.fullmatch(reason) for reason in _reasons(answer))


def _wrong_files(out: Path) -> Iterator[str]:
    found = sorted(p.name for p in out.glob("*"))
    if len(found) != 3:
        yield f"three files should come home, got {found}"


def _wrong_peaks(chosen: Sequence[Step], record: Record) -> Iterator[str]:
    for file, name, field, bar in PEAKS:
        if f"{file}: {name}" not in {step.name for step in chosen}:
            continue
        paths = list(record.results.glob(f"*/{file}.json"))
        found = [r for p in paths for r in _rows(json.loads(p.read_text())["results"]) if r.get("name") == name]
        peak = next((r[field] for r in found if r.get(field) is not None), None)
        if peak is None:
            yield f"{file}: {name} has no {field}"
            continue
        peak *= 2**30 if field.endswith("_gib") else 1
        print(f"{file}: {name}: {peak / 1e9:.2f} GB, bar {bar / 1e9:.2f} GB")
        if peak > bar:
            yield f"{file}: {name} takes {peak / 1e9:.2f} GB, more than {bar / 1e9:.2f} GB"


def _rows(results: Any) -> Iterator[dict[str, Any]]:
    """Every row of a subject's results, however deep they stand."""
    if isinstance(results, list):
        for item in results:
            yield from _rows(item)
    elif isinstance(results, dict):
        if "name" in results:
            yield results
        for value in results.values():
            yield from _rows(value)


if __name__ == "__main__":
    sys.exit(main())
