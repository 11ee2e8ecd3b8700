"""The benchmarks of sampling and weight sync: limits that are real, writes that are looked at, runs that overlap."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch

from bench import harness, overlap, rollout_vllm, server_answers, server_sync, vllm_models, weight_sync
from bench.__main__ import main
from bench.shapes import QUICKSTART
from bench.synthetic import random_model
from bench.weight_sync import MEMCPY, RELOAD, WRITE, Found, Way, differing, live_way, measure, memcpy_way, touched
from fastgrpo.rollout.weight_sync import LiveWeights
from tests.rollout.servers.accounts import about
from tests.rollout.servers.fake_server import RECEIVE, FakeServer
from tests.rollout.servers.replica import replica_of

CPU = torch.device("cpu")
HAS_VLLM = not vllm_models.why_no_vllm()


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    return tmp_path / harness.device_slug(CPU)


def engine_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 3)).to(torch.bfloat16)


def new_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: -p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed")
@pytest.mark.parametrize("subject", [["weight_sync"], ["rollout_vllm"], ["overlap"]])
def test_without_vllm_a_subject_says_so_in_one_line(subject, capsys):
    assert main([*subject, "--quick"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1
    assert printed[0].startswith(f"{subject[0]} is not measured: ") and "pip install" in printed[0]


def test_every_length_of_answers_is_drawn_and_costs_something(results, monkeypatch, capsys):
    monkeypatch.setattr(server_answers, "QUICK_TOKENS", 1)
    assert main(["server_answers", "--quick"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    found = {line[0]: [float(n.replace(",", "")) for n in line[1:]] for line in lines if line and line[0][0].isdigit()}
    assert list(found) == ["256", "1,024", "4,096", "16,384"]
    assert all(8 < row[0] < 9 and min(row) > 0 for row in found.values()) and not results.exists()


def test_ranks_learn_of_all_responses_and_each_gets_what_it_trains_on():
    """In a process of its own, whose forks are the ranks."""
    command = [sys.executable, "-m", "bench", "data_plane", "--quick"]
    done = subprocess.run(command, cwd=harness.ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "4 ranks, 8 prompts, 32 responses" in done.stdout and "of such shares" in done.stdout


def test_syncs_to_several_servers_are_compared_with_syncs_to_one(results, monkeypatch, capsys):
    @contextmanager
    def serving(config, folder):
        with ExitStack() as stack:
            held = [random_model(QUICKSTART, CPU, torch.bfloat16, "sdpa") for _ in range(server_sync.NUM_SERVERS)]
            servers = [stack.enter_context(FakeServer(replicas=(replica_of(model),))) for model in held]
            for server in servers:
                server.about = about(
                    vocabulary=QUICKSTART.vocabulary, width=QUICKSTART.width, dtype="bfloat16"
                ).to_json()
            yield [server.url for server in servers]
            synced = server_sync.QUICK_SYNCS + 1
            assert [len(server.of(RECEIVE)) for server in servers] == [2 * synced] + [synced] * (len(servers) - 1)

    monkeypatch.setattr(vllm_models, "why_no_vllm", lambda: "")
    monkeypatch.setattr(server_sync, "_serving", serving)
    assert main(["server_sync", "--quick"]) == 0
    row = next(line.split() for line in capsys.readouterr().out.splitlines() if line.strip().startswith("quickstart"))
    assert min(float(value) for value in row[1:5]) > 0 and not results.exists()


def test_the_memcpy_limit_copies_every_byte():
    source, target = (touched(100_003, CPU) for _ in range(2))
    way = memcpy_way(source, target)
    way.poison()
    assert way.wrong() == ["the copy"]
    way.write()
    assert way.wrong() == [] and torch.equal(source, target) and int(source.min()) > 0


def test_the_memcpy_limit_refuses_storage_that_is_shared():
    shared = touched(64, CPU)
    with pytest.raises(AssertionError, match="nothing would be copied"):
        memcpy_way(shared, shared.view(8, 8))


def broken_writes(live: LiveWeights, weights: dict[str, torch.Tensor]) -> dict[str, Way]:
    """One that does nothing, one that leaves out the last tensor, one that writes a row into its neighbour."""
    but_one = list(weights.items())[:-1]
    shifted = {**weights, "0.weight": weights["0.weight"].roll(1, 0)}
    return {
        "nothing": live_way(lambda: None, live, weights),
        "but one": live_way(lambda: live.write(but_one), live, weights),
        "shifted": live_way(lambda: live.write(shifted.items()), live, weights),
    }


def test_a_write_that_leaves_something_behind_is_noticed_and_a_right_one_is_not():
    model = engine_model()
    live, weights = LiveWeights.of_modules(model), new_weights(model)
    ways = {"right": live_way(lambda: live.write(weights.items()), live, weights), **broken_writes(live, weights)}
    found = measure(ways, CPU, rounds=2)
    assert {name: f.wrong for name, f in found.items()} == {
        "right": set(),
        "nothing": set(weights),
        "but one": {"1.bias"},
        "shifted": {"0.weight"},
    }
    assert all(len(f.seconds) == 2 for f in found.values())


def test_parameters_that_a_write_replaces_are_noticed():
    model = engine_model()
    live, weights = LiveWeights.of_modules(model), new_weights(model)

    def write() -> None:
        live.write(weights.items())
        model[0].weight = torch.nn.Parameter(weights["0.weight"].clone())

    way = live_way(write, live, weights, lambda: {n: p.data_ptr() for n, p in model.named_parameters()})
    way.poison()
    way.write()
    assert way.wrong() == ["parameters that moved"]


def test_a_layer_that_computes_from_a_stale_copy_is_noticed():
    oracle, model = engine_model(), engine_model()
    packed = [layer.weight.detach().clone() for layer in model]
    for layer, copy in zip(model, packed, strict=True):
        layer.cpu_linear = lambda x, weight, bias, copy=copy: torch.nn.functional.linear(x, copy, bias)
    assert differing(model, oracle) == []
    packed[1].mul_(-1)
    assert differing(model, oracle) == ["1"]


def report_of(wrong: set[str], excused: set[str] = frozenset()) -> int:
    found = {name: Found([0.1, 0.2], set(), set(), 0) for name in (MEMCPY, WRITE, RELOAD)}
    found[WRITE].wrong, found[RELOAD].excused = wrong, set(excused)
    return weight_sync.report("made up", 10**6, found, 0.5, CPU, quick=False)


def test_what_a_write_left_is_the_exit_code_and_the_ratio_to_the_native_reload_comes_last(results, capsys):
    assert report_of(set(), {"lm_head"}) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == "native reload over write into live views: 1, bar 10"
    assert "lm_head (vLLM's)" in printed
    content = json.loads((results / "weight_sync.json").read_text())
    assert content["results"]["ways"][WRITE].keys() == {
        "ms", "gb_per_s", "of_memcpy", "peak_mib", "spread_frac", "rounds", "wrong", "left_stale_by_vllm",
    }  # fmt: skip
    assert report_of({"model.norm.weight"}) == 1
    assert "write into live views left model.norm.weight" in capsys.readouterr().err


def test_an_overlapped_step_is_compared_with_the_longer_phase_of_the_synchronous_one():
    def step(step_s: float, sample_s: float, staleness: float) -> overlap.Step:
        train_s = step_s - sample_s
        return {
            "step_s": step_s, "sample_s": sample_s, "train_s": train_s, "sync_s": 0.1,
            "staleness": staleness,
        }  # fmt: skip

    found = overlap.figures({0: [step(5.0, 2.0, 0), step(5.2, 2.2, 0), step(9.0, 6.0, 0)], 1: [step(3.3, 0.0, 1)]})
    assert found["sample_s"] == pytest.approx(2.2) and found["longer_phase_s"] == pytest.approx(3.0)
    assert found["overlapped_of_longer"] == pytest.approx(1.1)
    with pytest.raises(AssertionError):
        overlap.figures({0: [step(5.0, 2.0, 0)], 1: [step(3.0, 0.0, 0)]})  # no token was ever one step older


def last_ratio(printed: str) -> float:
    return float(printed.strip().splitlines()[-1].split(": ")[1].split(",")[0])


@pytest.mark.slow
@pytest.mark.skipif(not HAS_VLLM, reason="needs vLLM, in an environment of its own: `make test-full`")
def test_a_quick_overlap_runs_both_modes_and_keeps_no_result(results, capsys):
    if harness.num_cores() < 2:
        pytest.skip("needs two cores")
    assert main(["overlap", "--quick"]) == 0
    printed = capsys.readouterr().out
    assert last_ratio(printed) > 0 and "overlapped step" in printed
    assert not results.exists()


@pytest.fixture
def without_cores(tmp_path) -> Path:
    """A folder whose taskset binds nothing: the machine may have one core."""
    file = tmp_path / "bin" / "taskset"
    file.parent.mkdir()
    file.write_text('#!/bin/sh\nshift 2\nexec "$@"\n')
    file.chmod(0o755)
    return file.parent


def test_a_run_that_fails_is_the_exit_code_and_has_its_last_words(results, without_cores, monkeypatch, capsys):
    monkeypatch.setattr(vllm_models, "why_no_vllm", lambda: "")
    monkeypatch.setattr(overlap, "QUICK_SIZES", ["--rollout.group_size", "1"])
    monkeypatch.setattr(overlap.os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setenv("PATH", str(without_cores), prepend=os.pathsep)
    assert main(["overlap", "--quick"]) == 1
    assert "--rollout.group_size must be" in capsys.readouterr().err


def test_one_core_is_too_few_to_overlap(monkeypatch, capsys):
    monkeypatch.setattr(overlap.os, "sched_getaffinity", lambda pid: {3})
    assert main(["overlap", "--quick"]) == 0
    assert capsys.readouterr().out == (
        "overlap is not measured: trainer and server need a core each, this process may use one\n"
    )


@pytest.mark.peers
@pytest.mark.skipif(not HAS_VLLM, reason="needs vLLM, in an environment of its own: `make test-full`")
@pytest.mark.parametrize("subject", ["weight_sync", "rollout_vllm"])
def test_a_quick_run_on_vllm_ends_with_its_ratio_and_keeps_no_result(subject):
    """In a process of its own: vLLM's settings and ours stay in the process for good."""
    kept = {f: f.stat().st_mtime for f in harness.RESULTS.rglob(f"{subject}.json")}
    command = [sys.executable, "-m", "bench", subject, "--quick"]
    done = subprocess.run(command, cwd=harness.ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert last_ratio(done.stdout) != 0
    assert {f: f.stat().st_mtime for f in harness.RESULTS.rglob(f"{subject}.json")} == kept
    if subject == "weight_sync":
        for way in (MEMCPY, WRITE, weight_sync.REPACK, weight_sync.BROADCAST):
            row = next(line for line in done.stdout.splitlines() if line.strip().startswith(f"{way} "))
            assert row.split()[-1] == "none"


def test_the_sizes_of_a_measurement_fit_its_context():
    for sizes in (rollout_vllm.QUICK, rollout_vllm.SMALL, rollout_vllm.LONG_1_5B):
        assert sizes.prompt_tokens + sizes.response_tokens <= sizes.context
        assert sizes.step_prompt_tokens + sizes.step_response_tokens <= sizes.tokens_per_microbatch
