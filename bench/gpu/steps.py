"""The steps for a GPU machine, in four groups, the most important first."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from shutil import which
from typing import Literal

Group = Literal["first", "correctness", "numbers", "rest"]
GROUPS: tuple[Group, ...] = ("first", "correctness", "numbers", "rest")


@dataclass(frozen=True)
class Need:
    """A requirement of a step, which is looked for without importing anything."""

    name: str
    is_there: Callable[[int], bool]  # given the number of GPUs


TWO_GPUS = Need("two GPUs", lambda gpus: gpus >= 2)
VLLM = Need("vllm", lambda gpus: find_spec("vllm") is not None)
SANITIZER = Need("compute-sanitizer", lambda gpus: which("compute-sanitizer") is not None)
PROFILER = Need("ncu", lambda gpus: which("ncu") is not None)


@dataclass(frozen=True)
class Step:
    """A call with its limit."""

    group: Group
    name: str
    limit_s: float
    arguments: tuple[str, ...]  # of `python -m bench`, or a whole command
    is_subject: bool  # whether it runs in the process that all subjects share, which has imported torch
    needs: Need | None = None
    environment: tuple[tuple[str, str], ...] = ()

    def missing(self, gpus: int) -> str:
        """The requirement that this machine does not have, or ""."""
        return "" if self.needs is None or self.needs.is_there(gpus) else self.needs.name


def _subject(
    group: Group, limit_s: float, subject: str, *arguments: str, name: str = "", needs: Need | None = None
) -> Step:
    return Step(group, name or subject, limit_s, (subject, "--device", "cuda", *arguments), True, needs)


def _program(
    group: Group, name: str, limit_s: float, *command: str, needs: Need | None = None, **environment: str
) -> Step:
    return Step(group, name, limit_s, command, False, needs, tuple(environment.items()))


def _rows(group: Group, limit_s: float, subject: str, *names: str, more: Sequence[str] = ()) -> list[Step]:
    return [_subject(group, limit_s, subject, *more, "--only", name, name=f"{subject}: {name}") for name in names]


def _pytest(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:benchmark", *arguments)


# A profiler or a sanitizer makes a subject slow, so its times must not become results.
_WATCHED = (sys.executable, "-m", "bench", "--results", "build/gpu/watched")
_LAUNCHES = (*_WATCHED, "kernel_launches", "--device", "cuda")
_SANITIZED = ("compute-sanitizer", "--error-exitcode", "1")
_WITHIN_60 = ("--timeout_s", "50")
_WIDE = ("--shape", "8192,4096,151936", "--output", "wide")


def steps(processes: int) -> list[Step]:
    """All steps. ``processes`` is the number of processes that compile or test at the same time."""
    many = ("--processes", str(processes))
    return [*_first(many), *_correctness(processes), *_numbers(many), *_rest()]


def _first(many: Sequence[str]) -> list[Step]:
    """Whether it runs at all, and the two most important figures."""
    return [
        _subject("first", 60, "machine"),
        _subject("first", 90, "kernel_launches", *many, "--timeout_s", "80"),
        *_rows("first", 45, "linear_grpo", "ours", "ours, cuBLAS logits"),
        *_rows("first", 75, "tokens_per_s", "prime_rl update"),
        _subject("first", 100, "real_shape", *many),
        *_rows("first", 40, "linear_logprobs", "ours"),
        *_rows("first", 75, "tokens_per_s", "1.5B 16k checkpointed update"),
    ]


def _correctness(processes: int) -> list[Step]:
    together = ("-n", str(min(processes, 8)))
    return [
        _program("correctness", "kernel tests", 200, *_pytest("tests/kernels", "-k", "gpu or tiles", *together)),
        _program("correctness", "trainer tests", 150, *_pytest("tests/gpu", "-n", "4")),
        # torch's allocator gives parts of large blocks, in which memcheck sees no overrun.
        _program("correctness", "memcheck", 120, *_SANITIZED, *_LAUNCHES, needs=SANITIZER,
                 PYTORCH_NO_CUDA_MEMORY_CACHING="1"),
        _program("correctness", "racecheck", 90, *_SANITIZED, "--tool", "racecheck", *_LAUNCHES, "--uncompared",
                 needs=SANITIZER),
        _program("correctness", "initcheck", 90, *_SANITIZED, "--tool", "initcheck", *_LAUNCHES, "--uncompared",
                 needs=SANITIZER, PYTORCH_NO_CUDA_MEMORY_CACHING="1"),
        # For global memory that is ordered by a barrier, which racecheck does not check.
        _subject("correctness", 40, "kernel_launches", "--repeats", "100", "--only", "NARROW", "--only",
                 "RATIO", name="equal bits in 100 launches"),
    ]  # fmt: skip


def _numbers(many: Sequence[str]) -> list[Step]:
    second_of_each = "::regex:_linear_tiles|_exponentials|_row_stats|_row_gradient:2"
    profiled = ("ncu", "--section", "SpeedOfLight", "--section", "Occupancy", "--section", "WarpStateStats",
                "--kernel-id", second_of_each)  # fmt: skip
    chunk = (*_WATCHED, "chunk_parts", "--device", "cuda")
    return [
        _subject("numbers", 60, "chunk_parts"),
        _subject("numbers", 120, "tile_sweep", *many, "--budget_s", "90"),
        *_rows("numbers", 150, "tokens_per_s", "1.5B 16k compiled update", "prime_rl compiled update"),
        *_rows("numbers", 60, "tokens_per_s", "1.5B 16k update"),
        *_rows("numbers", 30, "linear_logprobs", "ours, cuBLAS logits"),
        _subject("numbers", 45, "linear_grpo", *_WIDE, "--only", "ours", name="linear_grpo, wide: ours"),
        *_rows("numbers", 30, "grpo_loss", "ours", "eager torch"),
        *_rows("numbers", 30, "group_advantages", "ours", "eager torch"),
        *_rows("numbers", 30, "row_pass", "ours", "eager torch"),
        *_rows("numbers", 30, "attention", "varlen"),
        _subject("numbers", 40, "live_weights"),
        *_rows("numbers", 60, "memory", "packed_chunked, checkpointed", "packed_logits, checkpointed",
               "packed_chunked, all activations kept", more=_WITHIN_60),
        _program("numbers", "ncu of one chunk", 90, *profiled, *chunk, needs=PROFILER),
    ]  # fmt: skip


def _rest() -> list[Step]:
    quickstart = ("-m", "fastgrpo.train", "quickstart", "--device", "cuda", "--overwrite")
    runs = ("--runs_dir", "build/gpu/runs")
    plain = ("ours, in two ops (four matmuls)", "naive (fp32 logits / temperature, logsumexp, autograd)",
             "one logits buffer, our row pass")  # fmt: skip
    return [
        _program("rest", "quickstart on the GPU", 240, sys.executable, *quickstart, *runs),
        *_rows("rest", 45, "linear_grpo", *plain),
        *_rows("rest", 60, "tokens_per_s", "1.5B 16k checkpointed step", "1.5B 16k rollout"),
        *_rows("rest", 30, "attention", "sdpa", "padded", "flash_attn"),
        *_rows("rest", 60, "memory", "padded_logits, checkpointed", "packed_logits, all activations kept",
               "padded_logits, all activations kept", more=_WITHIN_60),
        *_rows("rest", 45, "linear_grpo", "Liger chunked GRPO", "TRL chunked"),
        _subject("rest", 120, "broadcast", needs=TWO_GPUS),
        _subject("rest", 200, "weight_sync", needs=VLLM),
        _subject("rest", 300, "rollout_vllm", needs=VLLM),
    ]  # fmt: skip
