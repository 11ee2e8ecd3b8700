"""The command line of `python -m bench gpu`, and the loop over the steps."""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from bench.gpu.device import gpu_names, slug
from bench.gpu.processes import CARRIED, ROOT, SubjectsProcess, environment, run_program
from bench.gpu.record import Answer, Record
from bench.gpu.steps import GROUPS, Step, steps
from bench.gpu.wheels import IMAGE, fetch, install

EXIT_REFUSED = 2
SHORTEST_S = 15.0
"""A step that would have less time than this is not started."""
CLOSING_S = 10.0
"""Part of the budget that is kept for writing the results at the end."""


def main(argv: Sequence[str]) -> int:
    """Returns 0 if every chosen step has passed, 1 if one failed or was not reached, 2 without a GPU."""
    started = time.monotonic()
    options = _parser().parse_args(argv)
    if options.wheels:
        return fetch(options.wheels, options.extra, options.image)
    chosen = choose(steps(options.processes), options.steps)
    if options.list:
        _list(chosen)
        return 0
    gpus = gpu_names()
    if not gpus:
        print(
            "bench gpu needs a CUDA GPU, and this machine's driver shows none; `make rehearse` runs it without "
            "(docs/gpu.md)",
            file=sys.stderr,
        )
        return EXIT_REFUSED
    try:
        record = Record((options.folder or ROOT / "build" / "gpu" / slug(gpus[0])).absolute(), options.out)
        with record.held():
            if options.carried.is_dir():
                install(options.carried)
            elif find_spec("tyro") is None:
                print(f"bench gpu: no wheels in {options.carried}, so trainer steps will fail", file=sys.stderr)
            sys.path.append(str(CARRIED))  # packages that a step needs may be there
            return run(chosen, record, len(gpus), started + options.budget_s)
    except ValueError as error:
        print(f"bench gpu: {error}", file=sys.stderr)
        return EXIT_REFUSED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench gpu",
        description="Steps on a GPU machine, most wanted first, within a budget of time. A later call goes on: what "
        "has passed is not asked again, what failed comes last.",
    )
    parser.add_argument("steps", nargs="*", help=f"groups ({', '.join(GROUPS)}) or names of steps; default: all")
    parser.add_argument("--budget_s", type=float, default=540.0, help="no step goes on after it; default: 540")
    parser.add_argument("--list", action="store_true", help="the steps with their limits, and nothing else")
    parser.add_argument(
        "--processes",
        type=int,
        default=os.cpu_count() or 1,
        help="side by side; default: all cores",
    )
    parser.add_argument("--folder", type=Path, help="of record, log and results; default: build/gpu/<gpu>")
    out = os.environ.get("OUT")
    parser.add_argument(
        "--out", type=Path, default=Path(out) if out else None,
        help="gets the log, the record and one tar of results after every step; default: $OUT",
    )  # fmt: skip
    parser.add_argument("--carried", type=Path, default=ROOT / ".whl", help="wheels to install first; default: .whl")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="fetch there what a GPU image lacks, and stop")
    parser.add_argument("--image", type=Path, default=IMAGE, help="with --wheels: names of the packages that are there")
    parser.add_argument(
        "--extra", action="append", default=[], metavar="PACKAGE", help="with --wheels: liger-kernel, vllm or another"
    )
    return parser


def choose(known: Sequence[Step], names: Sequence[str]) -> list[Step]:
    """The steps with these names or of these groups, in the order of the table; all steps without a name.

    Ends the program with 2 for an unknown name.
    """
    there = {*GROUPS, *(step.name for step in known)}
    for name in names:
        if name not in there:
            listing = "\n  ".join(("groups: " + ", ".join(GROUPS), *(step.name for step in known)))
            print(f"bench gpu: there is no step {name!r}; there are\n  {listing}", file=sys.stderr)
            raise SystemExit(2)
    return [s for s in known if not names or s.group in names or s.name in names]


def _list(chosen: Sequence[Step]) -> None:
    for group in GROUPS:
        of_group = [step for step in chosen if step.group == group]
        if of_group:
            print(f"{group}: {len(of_group)} steps, {sum(s.limit_s for s in of_group):.0f} s at most")
        for step in of_group:
            print(f"  {step.limit_s:4.0f} s  {step.name}" + (f"  (needs {step.needs.name})" if step.needs else ""))


def run(chosen: Sequence[Step], record: Record, gpus: int, deadline: float) -> int:
    """Runs one step after the other, each within its limit and the remaining time."""
    with record.log.open("a", encoding="utf-8", buffering=1) as log:
        subjects = SubjectsProcess(record.results, log)
        try:
            for step in record.to_do(chosen):
                _one(step, record, subjects, gpus, deadline)
        finally:
            subjects.close()
    record.hand_out()
    _show_results(record, max(1.0, deadline - time.monotonic()))
    return report(chosen, record)


def _one(step: Step, record: Record, subjects: SubjectsProcess, gpus: int, deadline: float) -> None:
    if missing := step.missing(gpus):
        if step.name not in record.answers:  # an earlier failure stays recorded
            record.add(Answer(step.name, "skipped", why=f"needs {missing}"))
        return
    left = deadline - CLOSING_S - time.monotonic()
    if left < min(SHORTEST_S, step.limit_s):
        if step.name in record.answers and record.answers[step.name].state == "skipped":
            del record.answers[step.name]  # it was skipped by an earlier call, and its requirement is there now
        return
    subjects.log.write(f"\n=== {step.name}\n")
    answer = subjects.run(step, left) if step.is_subject else run_program(step, left, subjects.log)
    subjects.log.write(f"=== {step.name}: {answer.state} after {answer.seconds:.0f} s {answer.why}\n")
    record.add(answer)
    print(f"{answer.state:<7} {answer.seconds:5.0f} s  {step.name}{_why(answer)}", flush=True)


def report(chosen: Sequence[Step], record: Record) -> int:
    """Prints what failed and what was not reached, and returns the exit code."""
    answers = record.answers
    failed = [s for s in chosen if s.name in answers and answers[s.name].state == "failed"]
    missed = [s for s in chosen if s.name not in answers]
    skipped = [s for s in chosen if s.name in answers and answers[s.name].state == "skipped"]
    for title, of in (("skipped", skipped), ("not reached", missed), ("failed", failed)):
        if of:
            print(f"{title}: " + "; ".join(f"{s.name}{_why(answers.get(s.name))}" for s in of))
    passed = len(chosen) - len(failed) - len(missed) - len(skipped)
    print(f"{passed} of {len(chosen)} steps passed; all that was printed is in {record.log}")
    return 1 if failed or missed else 0


def _why(answer: Answer | None) -> str:
    return f" ({answer.why})" if answer is not None and answer.why else ""


def _show_results(record: Record, limit_s: float) -> None:
    """Prints the headlines by another process, because that needs torch and this one does not."""
    command = [sys.executable, "-m", "bench", "--results", str(record.results), "summary"]
    try:
        subprocess.run(command, cwd=ROOT, env=environment({}), check=False, timeout=limit_s)
    except subprocess.TimeoutExpired:
        print(f"no time was left to show the results, which are in {record.results}")
