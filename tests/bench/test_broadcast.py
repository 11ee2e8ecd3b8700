"""The broadcast subject on gloo, and bench/nccl against a stand-in for NCCL: every byte arrives, or it is said."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from bench import broadcast, harness
from bench.__main__ import main
from bench.broadcast import QWEN25_0_5B, TensorSize, buckets, pattern, tensor_list, write_list, wrong_bytes
from bench.shapes import QUICKSTART, Shape

CPU = torch.device("cpu")
SIZES = [TensorSize("a", "bfloat16", 1000), TensorSize("b", "float32", 33), TensorSize("c", "uint8", 7)]


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    return tmp_path / harness.device_slug(CPU)


def test_a_quick_run_over_gloo_brings_every_byte_and_writes_every_field(results, capsys):
    assert main(["broadcast", "--quick"]) == 0
    content = json.loads((results / "broadcast_quick.json").read_text())
    ways = content["results"]["ways"]
    assert list(ways) == ["memcpy", "one by one", "buckets", "flat"]
    assert content["results"]["bytes"] == 2 * QUICKSTART.num_parameters
    for row in ways.values():
        assert set(row) == {"ms", "gb_per_s", "spread_frac", "wrong_bytes", "rounds"}
        assert row["ms"] > 0 and row["gb_per_s"] > 0 and row["wrong_bytes"] == 0 and row["rounds"] == 2
    assert [what for what, _, _ in content["headline"]] == ["gloo, one by one, quickstart", "gloo, buckets, quickstart"]
    assert capsys.readouterr().out.startswith("NCCL is not measured: ")


def test_without_gpus_the_reason_is_one_line_and_gloo_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(broadcast, "on_cpu", lambda options: print("gloo") or 0)
    assert main(["broadcast", "--quick", "--device", "cuda"]) == 0
    assert capsys.readouterr().out == "NCCL is not measured: it needs 2 GPUs, there are 1\ngloo\n"


def test_bytes_that_did_not_arrive_are_the_exit_code(results, monkeypatch):
    found = {
        way: {"seconds": [1.0], "wrong_bytes": way == "flat"} for way in ("memcpy", "one by one", "buckets", "flat")
    }
    monkeypatch.setattr(broadcast, "measure_gloo", lambda tensors, rounds: found)
    assert main(["broadcast", "--quick"]) == 1


@pytest.mark.parametrize("shape", [QUICKSTART, QWEN25_0_5B], ids=lambda s: s.name)
def test_the_tensor_list_is_the_model_s_parameters(shape: Shape, tmp_path):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape.transformers_config())
    write_list(tensor_list(shape), tmp_path / "tensors.txt")
    lines = [line.split() for line in (tmp_path / "tensors.txt").read_text().splitlines()]
    assert [(name, int(count)) for name, _, count in lines] == [(n, p.numel()) for n, p in model.named_parameters()]
    assert {dtype for _, dtype, _ in lines} == {"bfloat16"}
    assert sum(int(count) for _, _, count in lines) == shape.num_parameters


def test_every_wrong_byte_is_counted_and_no_two_tensors_look_alike():
    buffers = [pattern(i, 100_000) for i in range(3)]
    assert wrong_bytes(buffers) == 0
    buffers[1][5] += 1
    buffers[2][99_999] += 1
    assert wrong_bytes(buffers) == 2
    assert wrong_bytes(buffers[1:]) > 100_000


def test_buckets_hold_every_buffer_once_in_order_and_no_more_than_fits():
    buffers = [torch.full((size,), i, dtype=torch.uint8) for i, size in enumerate((3, 4, 4, 20, 1, 9))]
    together = buckets(buffers, 10)
    assert [[int(b[0]) for b in bucket] for bucket in together] == [[0, 1], [2], [3], [4, 5]]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [(["--rounds", "0"], "--rounds"), (["--gpus", "1"], "--gpus"), (["--nccl-tests", "x"], "needs --device cuda")],
)
def test_arguments_that_cannot_be_are_refused(arguments, reason, capsys):
    with pytest.raises(SystemExit):
        main(["broadcast", *arguments])
    assert reason in capsys.readouterr().err


def test_a_missing_nccl_tests_is_refused_before_anything_runs(tmp_path, capsys):
    assert main(["broadcast", "--device", "cuda", "--nccl-tests", str(tmp_path)]) == 2
    assert "no broadcast_perf" in capsys.readouterr().err


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """bench/nccl's program, with nccl_on_host.h in place of NCCL and CUDA."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("nccl")
    for header in ("nccl.h", "cuda_runtime.h"):
        (folder / header).symlink_to(Path(__file__).parent / "nccl_on_host.h")
    source = str(harness.ROOT / "bench" / "nccl" / "broadcast.cpp")
    warnings = ["-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, "-std=c++17", *warnings, "-I", str(folder), source, "-o", str(folder / "b")], check=True)
    return folder / "b"


@pytest.fixture
def sizes(tmp_path, monkeypatch) -> str:
    monkeypatch.setenv("NCCL_ON_HOST_GPUS", "3")
    write_list(SIZES, tmp_path / "tensors.txt")
    return str(tmp_path / "tensors.txt")


@pytest.mark.parametrize("root", ["0", "2"])
def test_the_program_brings_every_byte_to_every_rank(program, sizes, root):
    found = broadcast.run_program(program, [sizes, "--root", root, "--iterations", "2"])
    assert found["bytes"] == sum(t.num_bytes for t in SIZES) == 2000 + 132 + 7
    assert (found["num_tensors"], found["num_ranks"], found["iterations"]) == (3, 3, 2)
    for way in ("grouped", "one_by_one", "flat"):
        row = found[way]
        assert row["wrong_bytes"] == 0 and row["fastest_ms"] <= row["ms"] <= row["slowest_ms"]
        assert (
            row["algbw_gb_per_s"] == row["busbw_gb_per_s"] == pytest.approx(found["bytes"] / row["ms"] / 1e6, rel=1e-4)
        )


def test_the_program_counts_lost_bytes_and_fails(program, sizes, monkeypatch):
    monkeypatch.setenv("NCCL_ON_HOST_LOSES", "1")
    done = subprocess.run([str(program), sizes], capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert [found[way]["wrong_bytes"] for way in ("grouped", "one_by_one", "flat")] == [6, 6, 2]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--gpus", "4"], "more GPUs than the 3"),
        (["--gpus", "1"], "needs two GPUs"),
        (["--root", "3"], "--root must be"),
        (["--iterations", "0"], "--iterations must be"),
        (["--gpus", "-1"], "cannot take"),
        (["--nosuch", "1"], "cannot take"),
        (["--root"], "needs a value"),
        (["--processes", "2"], "needs --id_file"),
        (["/nosuch"], "cannot read"),
        ([__file__], "line 1: not a tensor"),
        ([os.devnull], "lists no tensor"),
    ],
)
def test_the_program_refuses_what_cannot_be(program, sizes, arguments, reason):
    done = subprocess.run([str(program), sizes, *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and reason in done.stderr and not done.stdout


def test_on_gpus_both_bandwidths_and_their_ratio_come_last(program, results, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("NCCL_ON_HOST_GPUS", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(broadcast, "build_program", lambda folder: program)
    monkeypatch.setattr(broadcast, "write_results", lambda name, device, *rest: harness.write_results(name, CPU, *rest))
    reference = tmp_path / "broadcast_perf"
    reference.write_text(f"#!/bin/sh\ncat {Path(__file__).parent}/broadcast_perf.txt\n")
    reference.chmod(0o755)
    assert main(["broadcast", "--quick", "--device", "cuda", "--nccl-tests", str(reference)]) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    shown = re.fullmatch(r"busbw .*: ours (.*) GB/s, nccl-tests in place 327 GB/s: ratio (.*)", last)
    assert shown and float(shown[2]) == pytest.approx(float(shown[1]) / 327.14, abs=0.01)
    assert json.loads((results / "broadcast_quick.json").read_text())["results"]["num_ranks"] == 2
