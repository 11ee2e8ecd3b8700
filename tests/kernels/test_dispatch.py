"""The backend of each device, the warning where the library is missing, and the build."""

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from fastgrpo_kernels import Objective, build, dispatch, group_advantages, native, plain

from bench.compiled_kernels import TARGETS, beyond_limits, variants
from tests.kernels.cases import make_case

ROOT = Path(__file__).parents[2]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_cuda_tensors_run_triton_whatever_was_built(monkeypatch):
    for built in (True, False):
        monkeypatch.setattr(dispatch, "native_is_built", lambda built=built: built)
        assert dispatch.backend_for(CUDA) == "gpu"


def test_cpu_tensors_run_the_native_library_that_this_environment_built():
    assert native.LIBRARY.exists(), "the install did not build it: python -m fastgrpo_kernels.build says why"
    assert dispatch.backend_for(CPU) == "native"


def test_a_missing_library_gives_one_warning_with_the_command_that_builds_it(monkeypatch, tmp_path):
    dispatch.native_is_built.cache_clear()
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "_native.so")
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            assert dispatch.backend_for(CPU) == dispatch.backend_for(CPU) == "plain"
            group_advantages(torch.rand(6), 3)
        assert len(warned) == 1 and "python -m fastgrpo_kernels.build" in str(warned[0].message)
    finally:
        dispatch.native_is_built.cache_clear()


def test_another_device_is_refused():
    with pytest.raises(ValueError, match=r"CUDA and CPU tensors, got one on meta"):
        dispatch.primitives_for(torch.device("meta"))


@pytest.mark.gpu
def test_on_cuda_nothing_of_plain_torch_runs(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("plain torch ran on CUDA")

    for name in ("row_stats", "row_gradient", "exponentials", "token_objective", "group_advantages"):
        monkeypatch.setattr(plain, name, refuse)
    make_case(40, 24, 257).to(torch.bfloat16, CUDA).ours(Objective(), entropy=True).loss.backward()
    group_advantages(torch.rand(6, device=CUDA), 3)


@pytest.mark.gpu
def test_float64_on_cuda_is_refused():
    with pytest.raises(ValueError, match=r"16- and 32-bit floats, got torch\.float64"):
        make_case(4, 8, 33).to(torch.float64, CUDA).ours(Objective())


def test_importing_the_package_loads_torch_alone():
    code = "import sys, fastgrpo_kernels; print(*{m.split('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in loaded
    assert not {"triton", "transformers", "trl", "verl", "openrlhf", "fastgrpo"} & set(loaded)


def test_without_a_compiler_the_build_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(build.shutil, "which", lambda tool, path: None if tool != "cmake" else "/usr/bin/cmake")
    monkeypatch.setattr(sys, "argv", ["build"])
    assert build.main() == 1
    assert "no C++ compiler was found: install g++ or clang" in capsys.readouterr().err


def test_without_torch_the_build_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(build.sysconfig, "get_path", lambda key: "/nowhere")
    with pytest.raises(build.BuildError, match=r"torch >= 2\.10 is not installed"):
        build.torch_folder()


@pytest.mark.parametrize("targets", [(90,), pytest.param(TARGETS, marks=pytest.mark.slow)])
def test_every_triton_kernel_compiles_within_what_the_chip_has(targets):
    """A process of its own compiles them, for in this one they are interpreted."""
    code = (
        "import json; from bench.compiled_kernels import *;"
        f"print(json.dumps([compiled(v, c) for v in variants() for c in {targets} if c >= v.least_sm]))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(done.stdout.splitlines()[-1])
    sources = "".join(path.read_text() for path in (ROOT / "kernels/fastgrpo_kernels/gpu").glob("*.py"))
    launched = set(re.findall(r"^ +(_\w+)\[.*\]\(", sources, re.MULTILINE))
    assert len(rows) == sum(c >= v.least_sm for v in variants() for c in targets) and launched == {
        row["kernel"] for row in rows
    }
    assert not [(row, beyond) for row in rows if (beyond := beyond_limits(row))]
