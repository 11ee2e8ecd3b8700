"""Every Triton kernel once, interpreted: all are launched and right, and a wrong or dying one cannot look right."""

import ast
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import harness, kernel_cases, kernel_launches, side_by_side
from bench.__main__ import main

pytest.importorskip("triton")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ARGUMENTS = ["kernel_launches", "--device", DEVICE.type]
NAME, OTHER = "groups equal 7 x 8", "tokens plain"


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    return tmp_path / harness.device_slug(DEVICE)


@pytest.fixture
def perturbed(monkeypatch):
    """Two launches; what ours gives for the first is changed."""
    two = [x for x in kernel_cases.launches(DEVICE) if x.name in (NAME, OTHER)]

    def perturb(change) -> None:
        def ours(device, launch):
            outcome = launch.ours(device)
            return {name: change(value) for name, value in outcome.items()}

        changed = [replace(x, ours=lambda device, x=x: ours(device, x)) if x.name == NAME else x for x in two]
        monkeypatch.setattr(kernel_launches, "launches", lambda device: changed)

    return perturb


def rows_of(folder: Path, subject="kernel_launches") -> dict:
    content = json.loads((folder / f"{subject}.json").read_text())
    return {row["name"]: row for row in content["results"]["rows"]}


def test_every_kernel_is_launched_and_right(results, capsys):
    assert main(ARGUMENTS) == 0
    rows = rows_of(results)
    assert all(row["within"] and row["errors"] for row in rows.values())
    assert {kernel for row in rows.values() for kernel in row["kernels"]} == set(kernel_cases.KERNELS)
    assert f"0 of {len(rows)} launches are wrong" in capsys.readouterr().out.splitlines()[-1]


def test_the_kernels_are_all_that_the_gpu_backend_launches():
    """Those whose name is indexed with a grid."""
    folder = harness.ROOT / "kernels" / "fastgrpo_kernels" / "gpu"
    nodes = [node for file in folder.glob("*.py") for node in ast.walk(ast.parse(file.read_text()))]
    launched = {
        node.func.value.id
        for node in nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript) and isinstance(node.func.value, ast.Name)
    }
    assert launched == set(kernel_cases.KERNELS)


@pytest.mark.parametrize("change", [lambda v: v * 1.0001, lambda v: torch.where(v == v.max(), torch.nan, v)])
def test_a_perturbed_result_is_wrong(change, results, perturbed, capsys):
    perturbed(change)
    assert main(ARGUMENTS) == 1
    assert {name: row["within"] for name, row in rows_of(results).items()} == {NAME: False, OTHER: True}
    shown = capsys.readouterr()
    assert f"WRONG  {NAME}" in shown.out and f"ok     {OTHER}" in shown.out
    assert NAME in shown.err.strip().splitlines()[-1]


def test_a_launch_that_raises_is_named_and_the_others_go_on(results, perturbed, capsys):
    def raises(value):
        raise RuntimeError("an illegal address")

    perturbed(raises)
    assert main(ARGUMENTS) == 1
    rows = rows_of(results)
    assert "an illegal address" in rows[NAME]["why_not"] and rows[OTHER]["within"]


def test_runs_that_differ_in_a_bit_are_wrong(results, perturbed, capsys):
    runs = []

    def change(value):
        runs.append(0)
        return value if len(runs) < 3 else value.nextafter(torch.ones_like(value))

    perturbed(change)
    assert main([*ARGUMENTS, "--repeats", "2"]) == 0
    runs.clear()
    assert main([*ARGUMENTS, "--repeats", "3"]) == 1
    assert "run 3 gave another advantages" in rows_of(results, "kernel_launches_repeated")[NAME]["why_not"]


def test_uncompared_launches_compute_no_definition(results, monkeypatch):
    def never(dtype):
        raise AssertionError("compared")

    launches = [replace(x, definition=never) for x in kernel_cases.launches(DEVICE) if x.name in (NAME, OTHER)]
    monkeypatch.setattr(kernel_launches, "launches", lambda device: launches)
    assert main([*ARGUMENTS, "--uncompared"]) == 0
    assert main(ARGUMENTS) == 1


def test_launches_split_over_processes_are_all_there(results):
    part = "rows float32"
    assert main([*ARGUMENTS, "--only", part, "--processes", "2"]) == 0
    expected = [x.name for x in kernel_cases.launches(DEVICE) if part in x.name]
    rows = rows_of(results)
    assert sorted(rows) == sorted(expected) and all(row["within"] and row["errors"] for row in rows.values())


def test_what_a_dead_process_did_not_reach_is_wrong(results, monkeypatch):
    """Of four launches each process has two; the second one dies after its first."""
    names = [x.name for x in kernel_cases.launches(DEVICE)][:4]

    def row(name: str) -> str:
        return kernel_launches._ROW + json.dumps(
            {"name": name, "kernels": [], "errors": {}, "why_not": "", "within": True}
        )

    found = [([row(names[0]), row(names[2])], ""), ([row(names[1])], "exit -11: Segmentation fault")]
    monkeypatch.setattr(kernel_launches, "run_workers", lambda commands, timeout_s: found)
    only = [argument for name in names for argument in ("--only", name)]
    wanted = [x for x in kernel_cases.launches(DEVICE) if x.name in names]
    monkeypatch.setattr(kernel_launches, "launches", lambda device: wanted)
    assert main([*ARGUMENTS, *only, "--processes", "2"]) == 1
    rows = rows_of(results)
    assert [name for name in names if not rows[name]["within"]] == [names[3]]
    assert "Segmentation fault" in rows[names[3]]["why_not"]


def test_a_process_that_takes_too_long_is_ended():
    ((lines, why_not),) = side_by_side.run_workers([["kernel_launches", "--list"]], 0.0)
    assert lines == [] and why_not.startswith("took too long")


@pytest.mark.parametrize("share", ["2/2", "1", "a/2"])
def test_a_share_that_is_none_is_refused(share, capsys):
    with pytest.raises(SystemExit):
        main([*ARGUMENTS, "--share", share])
    assert "need I/N" in capsys.readouterr().err


def test_a_name_that_no_launch_has_is_refused(capsys):
    with pytest.raises(SystemExit):
        main([*ARGUMENTS, "--only", "no such launch"])
    assert "--only must be a part" in capsys.readouterr().err


def test_on_a_cpu_the_interpreter_is_asked_for():
    assert torch.cuda.is_available() or os.environ["TRITON_INTERPRET"] == "1"


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((16384, 1536, 151936), (256, 1536, 1024)), ((37, 100, 1003), (37, 100, 1003)), ((16, 64, 512), (16, 64, 512))],
)
def test_a_small_shape_keeps_what_triton_specialises_on(shape, expected):
    assert side_by_side.few(shape) == expected
