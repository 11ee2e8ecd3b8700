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


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder of runs; the base model of the first serves the others."""
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize(
    "name, settings",
    [
        ("colocated", []),
        (
            "continuous",
            ["--rollout.gpus", "1", "--rollout.max_staleness", "2", "--objective.correction", "truncate"],
        ),
    ],
)
def test_the_quickstart_learns_on_vllm(runs, name, settings):
    if (runs / "colocated" / "base").exists() and name != "colocated":
        shutil.copytree(runs / "colocated" / "base", runs / name / "base")
    command = [sys.executable, "-m", "fastgrpo", "train", "--ranks", "2", "quickstart", "--rollout.engine", "vllm"]
    command += ["--runs_dir", str(runs), "--name", name, "--evaluation.every_steps", "20", *settings]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert printed.returncode == 0, printed.stdout[-2000:] + printed.stderr[-4000:]
    summary = json.loads((runs / name / "summary.json").read_text())
    assert summary["accuracy_before"] < 0.5 and summary["accuracy_after"] >= 0.85 and summary["greedy_after"] >= 0.85
    records = [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()][1:]
    bound = int(settings[3]) if len(settings) > 2 else 0
    assert max(r["staleness_max"] for r in records) == bound
    if bound == 0:  # the sampler and the trainer are one policy
        assert max(abs(r["rollout_kl"]) for r in records) < 1e-5
        assert max(r["logprob_diff_above_001_frac"] for r in records) < 1e-3
