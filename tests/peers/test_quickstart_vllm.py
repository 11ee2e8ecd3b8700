"""The quickstart with real vLLM as its sampler, on a CPU, as a newcomer would start it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="needs vLLM, in an environment of its own: `make test-full`")
pytestmark = pytest.mark.peers

ROOT = Path(__file__).parents[2]


AHEAD = ("--rollout.gpus", "1", "--rollout.max_staleness", "2", "--objective.correction", "truncate")


def run(runs: Path, name: str, *settings: str) -> Path:
    """The folder of a run that ended well."""
    command = [sys.executable, "-m", "fastgrpo", "train", "--ranks", "2", "quickstart", "--rollout.engine", "vllm"]
    command += ["--runs_dir", str(runs), "--name", name, "--evaluation.every_steps", "20", *settings]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert printed.returncode == 0, printed.stdout[-2000:] + printed.stderr[-4000:]
    return runs / name


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][1:]


def test_the_quickstart_learns_on_vllm_two_steps_ahead_and_beside_it_the_sampler_is_the_trainer(tmp_path):
    folder = run(tmp_path, "ahead", *AHEAD)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["accuracy_before"] < 0.5 and summary["accuracy_after"] >= 0.85 and summary["greedy_after"] >= 0.85
    assert max(r["staleness_max"] for r in records(folder)) == 2

    shutil.copytree(folder / "base", tmp_path / "colocated" / "base")
    steps = records(run(tmp_path, "colocated", "--steps", "4"))
    assert max(r["staleness_max"] for r in steps) == 0
    assert max(abs(r["rollout_kl"]) for r in steps) < 1e-5
    assert max(r["logprob_diff_above_001_frac"] for r in steps) < 1e-3
