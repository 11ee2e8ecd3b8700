"""Every Triton kernel once at odd shapes: for compute-sanitizer, and as a first check.

Shapes are no multiples of block sizes, and small enough for memcheck. Each launch is compared with the float64
definition by the tests' rule: at most twice the error of plain torch in the same dtype, plus last bits. Definitions are
computed on the CPU, so that a sanitizer sees only our kernels and copies. Without a GPU the kernels are interpreted, in
float32 and at smaller shapes.

    python -m bench kernel_launches --device cuda --processes 16       # a first check; fills Triton's cache
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --error-exitcode 1 \\
        python -m bench kernel_launches --device cuda                  # memcheck: each tensor is its own allocation
    compute-sanitizer --tool racecheck --error-exitcode 1 \\
        python -m bench kernel_launches --device cuda --uncompared     # only shared memory
    python -m bench kernel_launches --device cuda --repeats 100 --only NARROW --only RATIO

The last command is for the two kernels that order global memory by a barrier, which racecheck does not check: every run
must give the bits of the first.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from bench.harness import (
    Row,
    exit_code,
    print_table,
    write_results,
)
from bench.kernel_cases import KERNELS, launches, running_gpu_backend
from bench.launch import Launch, Outcome
from bench.side_by_side import attempted, run_workers, share_of

_ROW = "launch: "
"""Beginning of a worker's line that has a row."""


def main(argv: Sequence[str]) -> int:
    """Runs the launches. Returns 1 if a launch raises, a process dies, or a result is wrong."""
    parser = _parser()
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    if device.type == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports the kernels
    wanted = [x for x in launches(device) if not options.only or any(part in x.name for part in options.only)]
    if not wanted:
        parser.error(f"--only must be a part of a launch's name, got {options.only}: --list shows them")
    if options.list:
        print("\n".join(f"{x.name}: {', '.join(x.kernels)}" for x in wanted))
        return 0
    if options.share:
        share, shares = options.share
        for launch in wanted[share::shares]:
            print(_ROW + json.dumps(launched(launch, device, not options.uncompared, options.repeats)), flush=True)
        return 0
    if options.processes > 1:
        rows = _in_processes(wanted, options)
    else:
        rows = []
        for launch in wanted:
            rows.append(launched(launch, device, not options.uncompared, options.repeats))
            print(_line(rows[-1]), flush=True)
    return _report(rows, device, options.repeats)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench kernel_launches", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--list", action="store_true", help="the launches and their kernels, and nothing else")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="a part of a name; repeatable")
    parser.add_argument("--uncompared", action="store_true", help="launch, and compare nothing")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each launch, which must agree bit for bit")
    parser.add_argument("--processes", type=int, default=1, help="how many share the launches and the GPU")
    parser.add_argument("--timeout_s", type=float, default=300.0, help="of a process, with --processes")
    parser.add_argument("--share", type=share_of, metavar="I/N", help="every Nth launch, from the Ith on; from 0")
    return parser


# Running and comparing.


def launched(launch: Launch, device: torch.device, compared: bool, repeats: int = 1) -> Row:
    """A row: the largest error of each result with its bound, and the reason of a failure or ""."""
    row: Row = {"name": launch.name, "kernels": list(launch.kernels), "errors": {}, "why_not": "", "within": True}
    started = time.perf_counter()
    got, row["why_not"] = attempted(lambda: _repeated(launch, device, repeats), device)
    row["seconds"] = time.perf_counter() - started
    if got is not None and compared:
        errors, row["why_not"] = attempted(lambda: _errors(launch, got), device)
        row["errors"] = errors or {}
    row["within"] = not row["why_not"] and all(e["within"] for e in row["errors"].values())
    return row


def _repeated(launch: Launch, device: torch.device, repeats: int) -> Outcome:
    """The outcome, on the CPU. Raises AssertionError if a later run gives other bits than the first."""

    def once() -> Outcome:
        with running_gpu_backend(device):
            return {name: value.detach().cpu() for name, value in launch.ours(device).items()}

    first = once()
    for i in range(1, repeats):
        for name, again in once().items():
            same = torch.allclose(again, first[name], rtol=0.0, atol=0.0, equal_nan=True)
            assert same, f"run {i + 1} gave another {name} than the first"
    return first


def _errors(launch: Launch, got: Outcome) -> dict[str, Row]:
    exact, wide = (launch.definition(dtype) for dtype in (torch.float64, torch.float32))
    own = wide if launch.dtype == torch.float32 else launch.definition(launch.dtype)
    assert got.keys() == exact.keys(), f"{launch.name} gave {sorted(got)}, its definition {sorted(exact)}"
    errors = {}
    for name, value in got.items():
        is_gradient = name.startswith("grad")
        plain = own if is_gradient else wide
        errors[name] = _error(value, plain[name], exact[name], largest_term=0.0 if is_gradient else 1.0)
    return errors


def _error(got: Tensor, plain: Tensor, exact: Tensor, largest_term: float) -> Row:
    """The largest difference from the exact values, and its bound: twice plain torch's difference and some last bits.

    ``largest_term`` is the largest term of a sum: its last bits count if the terms cancel.
    """
    assert got.shape == exact.shape, f"got {list(got.shape)}, the definition has {list(exact.shape)}"
    if not got.numel():
        return {"error": 0.0, "bound": 0.0, "within": True}
    bits = 1 if got.dtype in (torch.bfloat16, torch.float16) else 8  # a 16-bit result is rounded once more at most
    floor = bits * torch.finfo(got.dtype).eps * max(_largest(exact), largest_term)
    error, bound = _largest(got.double() - exact), 2 * _largest(plain.double() - exact) + floor
    return {"error": error, "bound": bound, "within": error <= bound}  # NaN is not


def _largest(differences: Tensor) -> float:
    return float(differences.detach().abs().max())


def _line(row: Row) -> str:
    return f"{'ok' if row['within'] else 'WRONG':<6} {row['name']}: {_shown(row)}"


def _shown(row: Row) -> str:
    """The error of each result, with its bound if the error is above it; or the reason if there is none."""
    errors = (
        f"{name} {e['error']:.1e}" + ("" if e["within"] else f" above {e['bound']:.1e}")
        for name, e in row["errors"].items()
    )
    return row["why_not"] or "; ".join(errors) or "not compared"


def _report(rows: list[Row], device: torch.device, repeats: int) -> int:
    wrong = {row["name"]: _shown(row) for row in rows if not row["within"]}
    headline = [["kernel launches that are wrong", len(wrong), f"0 of {len(rows)}"]]
    name = "kernel_launches" if repeats == 1 else "kernel_launches_repeated"
    print(write_results(name, device, headline, {"rows": rows}))
    counts = [(k, sum(k in r["kernels"] for r in rows), sum(k in r["kernels"] for r in rows if not r["within"]))
              for k in KERNELS]  # fmt: skip
    print_table("kernels", ("kernel", "launches", "wrong"), counts)
    print(f"kernel_launches: {len(wrong)} of {len(rows)} launches are wrong")
    return exit_code("kernel_launches", wrong)


# Several processes on one GPU: compilation takes most of the time, and needs a core each.


def _in_processes(wanted: Sequence[Launch], options: argparse.Namespace) -> list[Row]:
    """A row for every launch. If a process dies or takes too long, the rows that it did not reach have the reason."""
    count = min(options.processes, len(wanted))
    flags = [f"--repeats={options.repeats}", *(f"--only={part}" for part in options.only)]
    flags += ["--uncompared"] if options.uncompared else []
    commands = [
        ["kernel_launches", "--device", options.device, "--share", f"{i}/{count}", *flags] for i in range(count)
    ]
    rows: list[Row] = []
    for share, (lines, why_not) in enumerate(run_workers(commands, options.timeout_s)):
        own = [json.loads(line.removeprefix(_ROW)) for line in lines if line.startswith(_ROW)]
        for launch in wanted[share::count][len(own) :]:
            own.append({"name": launch.name, "kernels": list(launch.kernels), "errors": {}, "within": False,
                        "why_not": f"its process ended before it: {why_not or 'without a row'}"})  # fmt: skip
        for row in own:
            print(_line(row), flush=True)
        rows += own
    return rows
