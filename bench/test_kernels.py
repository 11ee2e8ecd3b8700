"""The kernels' subjects for pytest-benchmark: ``pytest bench --benchmark-only``.

On a CPU the shapes are small, on a GPU they are the real ones; the host's time is included. The figures in the docs
come from ``python -m bench SUBJECT``, which interleaves the rows, uses several inputs so that caches do not help, and
compares with the oracle.
"""

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from bench import group_advantages, grpo_loss, linear_grpo, linear_logprobs, row_pass
from bench.harness import synchronize
from bench.kernel_subjects import Table

pytest.importorskip("pytest_benchmark")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SUBJECTS = (linear_grpo, linear_logprobs, grpo_loss, group_advantages, row_pass)


def cases() -> Iterator[Any]:
    """The limit, our implementation and plain torch's, for every table."""
    for subject in SUBJECTS:
        name = subject.__name__.removeprefix("bench.")
        for table in subject.tables(DEVICE):
            yield pytest.param(subject, table, None, id=f"{name}, {table.mode}: {table.limit}")
            for i in table.implementations:
                if not i.why_not and (i.name.startswith("ours") or i.name == table.plain):
                    yield pytest.param(subject, table, i.run, id=f"{name}, {table.mode}: {i.name}")


@pytest.mark.parametrize("subject, table, run", list(cases()))
def test_time(subject: ModuleType, table: Table, run: Any, benchmark: Any) -> None:
    inputs = table.inputs(subject.SHAPES["quick" if DEVICE.type == "cpu" else "cuda"], DEVICE)
    work = table.limit_work(inputs) if run is None else lambda: run(inputs)
    benchmark.group = f"{subject.__name__.removeprefix('bench.')}, {table.mode}"

    def timed() -> None:
        work()
        synchronize(DEVICE)

    benchmark.pedantic(timed, rounds=7, warmup_rounds=2)
