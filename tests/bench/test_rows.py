"""Rows that are measured one by one: chosen by name, kept beside others, failed without hiding them."""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from bench import attention, compiled_kernels, harness, learning_control, limits, memory_bound, rewards, tokens_per_s
from bench.__main__ import main
from bench.harness import SHORTEST_S, Timing, chosen, exit_code, interleaved, merged, timed
from bench.limits import Peak
from bench.shapes import QUICKSTART
from bench.tokens_per_s import PROTOCOLS, Protocol
from fastgrpo.ranks.children import ending_with_parent

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PEAK = Peak("float32", 4, 1e11, 1e10)


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    return tmp_path / harness.device_slug(CPU)


def raises(*_, **__):
    raise RuntimeError("it broke\nand more")


# What all subjects share.


def test_chosen_rows_are_in_the_subject_s_order_and_all_of_them_without_only():
    parser = argparse.ArgumentParser()
    assert chosen(parser, None, ["a", "b", "c"]) == ["a", "b", "c"]
    assert chosen(parser, ["c", "a"], ["a", "b", "c"]) == ["a", "c"]


@pytest.mark.parametrize(
    ("subject", "names"),
    [
        ("memory", ["packed_chunked, checkpointed", "padded_logits, all activations kept"]),
        ("attention", ["padded", "sdpa", "varlen", "flash_attn"]),
        ("tokens_per_s", ["quickstart update", "quickstart rollout", "quickstart step"]),
        ("linear_grpo", ["ours, plain torch", "one logits buffer, our row pass"]),
    ],
)
def test_a_row_that_there_is_not_is_refused_with_the_list(subject, names, capsys):
    with pytest.raises(SystemExit) as refused:
        main([subject, "--only", "nosuch"])
    error = capsys.readouterr().err
    assert refused.value.code == 2
    assert "got 'nosuch'" in error and all(f"\n  {name}" in error for name in names)


def test_a_new_row_takes_the_place_of_the_old_one():
    old = [{"name": "gone", "x": 0}, {"name": "b", "x": 1}]
    new = [{"name": "b", "x": 2}, {"name": "a", "x": 3}]
    assert [(row["name"], row["x"]) for row in merged(old, new, ["a", "b"])] == [("a", 3), ("b", 2), ("gone", 0)]


def test_failed_rows_are_the_last_lines_and_the_exit_code(capsys):
    assert exit_code("subject", {}) == 0
    assert exit_code("subject", {"a row": "failed: why", "another": "out of memory"}) == 1
    lines = ["bench subject: a row failed: why", "bench subject: another failed: out of memory"]
    assert capsys.readouterr().err.splitlines() == lines


def fails_at(call: int):
    calls = []

    def work() -> None:
        calls.append(1)
        if len(calls) == call:
            raises()

    return work


@pytest.mark.parametrize("call", [1, 2, 3])  # the warm-up, the first round, the second
def test_a_work_that_fails_in_any_round_is_dropped_and_the_others_go_on(call):
    works = {"a": lambda: None, "b": fails_at(call), "c": lambda: None}
    dropped = []
    times = interleaved(works, CPU, rounds=3, warmup_s=0, drop=lambda name, error: dropped.append((name, str(error))))
    assert {name: len(t) for name, t in times.items()} == {"a": 3, "c": 3}
    assert dropped == [("b", "it broke\nand more")]


def test_without_drop_a_failing_work_ends_the_run():
    with pytest.raises(RuntimeError, match="it broke"):
        interleaved({"a": fails_at(2)}, CPU, rounds=3, warmup_s=0)


def test_a_clock_that_stands_still_gives_times_that_can_be_divided_by(monkeypatch):
    monkeypatch.setattr(harness.time, "perf_counter", lambda: 0.0)
    timing = timed(lambda: None, CPU, warmup_s=0, repeats=3)
    assert timing == Timing(SHORTEST_S, 0.0, 3)


def test_a_gpu_is_warmed_up_for_a_shorter_time(monkeypatch):
    warmed = []
    monkeypatch.setattr(harness, "synchronize", lambda device: None)
    monkeypatch.setattr(harness.time, "perf_counter", lambda: warmed.append(1) or 0.1 * len(warmed))
    for device, at_most in ((CUDA, 3), (CPU, 6)):
        warmed.clear()
        harness._warm_up(lambda: None, device, None)
        assert at_most - 1 <= len(warmed) - 1 <= at_most  # looks at the clock, 0.1 s apart


def test_a_copy_s_bandwidth_is_measured_without_a_matmul(monkeypatch):
    monkeypatch.setattr(torch, "mm", raises)
    monkeypatch.setitem(harness.WARMUP_S, "cpu", 0.0)
    memory_bound.large_copy_bytes_per_s.cache_clear()
    assert memory_bound.large_copy_bytes_per_s(CPU) > 0
    with pytest.raises(RuntimeError, match="it broke"):
        limits.matmul_flops_per_s(CPU, torch.float32)


# --results


def test_results_go_to_the_folder_that_is_named(tmp_path, results):
    assert main(["--results", str(tmp_path / "elsewhere"), "grpo_loss", "--quick", "--only", "eager torch"]) == 0
    folder = tmp_path / "elsewhere" / harness.device_slug(CPU)
    assert [file.name for file in folder.iterdir()] == ["grpo_loss_quick.json"]
    assert not results.exists()


def test_a_child_process_keeps_its_results_in_the_same_folder(tmp_path, monkeypatch):
    """A relative folder too: children work in the checkout."""
    monkeypatch.setattr(harness, "RESULTS", harness.RESULTS)
    monkeypatch.chdir(tmp_path)
    commands = []
    done = SimpleNamespace(returncode=0, stdout="{}", stderr="")
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command) or done)
    monkeypatch.setattr(tokens_per_s, "run_to_end", lambda command, _: commands.append(command) or done)
    assert main(["--results", "here", "tokens_per_s", "--ranks", "2", "--only", "quickstart step"]) == 0
    assert harness.run_worker(["memory"]) == {}
    here = ["-m", "bench", "--results", str(tmp_path / "here")]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arguments = ["tokens_per_s", "--ranks", "2", "--only", "quickstart step"]
    worker = ending_with_parent([sys.executable, *here, "memory"])
    assert commands == [[sys.executable, *torchrun, *here, *arguments], worker]


def test_help_says_where_results_go_and_a_missing_folder_is_refused(capsys):
    assert main(["--help"]) == 0
    assert "--results DIR" in capsys.readouterr().out
    assert main(["--results"]) == 2
    assert "--results needs a folder" in capsys.readouterr().err


def test_a_process_that_is_killed_while_it_writes_leaves_the_old_results(results, monkeypatch):
    path = harness.write_results("x", CPU, [], {"rows": [1]})
    monkeypatch.setattr(Path, "replace", raises)
    with pytest.raises(RuntimeError):
        harness.write_results("x", CPU, [], {"rows": [2]})
    assert harness.read_results("x", CPU) == {"rows": [1]}
    assert path == results / "x.json"


# attention


def attention_rows(folder: Path) -> dict[str, dict]:
    content = json.loads((folder / "attention.json").read_text())
    return {row["name"]: row for row in content["results"]["implementations"]}


@pytest.fixture
def quick_attention(results, monkeypatch):
    small = replace(attention.QWEN25_1_5B, num_heads=2, num_kv_heads=1, head_width=16)
    monkeypatch.setattr(attention, "QWEN25_1_5B", small)
    monkeypatch.setattr(attention, "measured_peak", lambda device, dtype: PEAK)
    real = attention.timed
    monkeypatch.setattr(attention, "timed", lambda work, device, budget_s: real(work, device, warmup_s=0, repeats=1))
    return results


def test_an_attention_that_fails_is_the_exit_code_and_hides_no_other(quick_attention, monkeypatch, capsys):
    monkeypatch.setattr(attention.Layout, "masked_sdpa", raises)
    assert main(["attention", "--tokens", "64"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "bench attention: sdpa failed: RuntimeError: it broke"
    rows = attention_rows(quick_attention)
    assert rows["padded"]["within"] and rows["sdpa"]["error"] == "RuntimeError: it broke"
    assert rows["varlen"]["why_not"] == rows["flash_attn"]["why_not"] == "needs CUDA"


def test_only_replaces_its_attention_and_refuses_rows_of_another_size(quick_attention, monkeypatch, capsys):
    assert main(["attention", "--tokens", "64"]) == 0
    before = attention_rows(quick_attention)
    monkeypatch.setattr(attention.Layout, "masked_sdpa", raises)
    assert main(["attention", "--tokens", "64", "--only", "padded"]) == 0
    after = attention_rows(quick_attention)
    assert after["sdpa"] == before["sdpa"] and after["padded"] != before["padded"]
    with pytest.raises(SystemExit) as refused:
        main(["attention", "--tokens", "128", "--only", "padded"])
    assert refused.value.code == 2 and "are of 64 tokens and not of 128" in capsys.readouterr().err


def test_only_transformers_attention_may_not_fit():
    assert attention._failure({"name": "sdpa", "oom": "x"}) == ""
    assert attention._failure({"name": "varlen", "oom": "x"}) == "x"
    assert attention._failure({"name": "varlen", "within": False}).startswith("it errs more")


# tokens_per_s

SMALL = Protocol(
    "quickstart", replace(QUICKSTART, num_layers=1), (24,) * 16, 256, 8,
    rollout=(2, 8, 8, 4), step=(2, 8, 4, 1), composed=True,
)  # fmt: skip


@pytest.fixture
def small(results, monkeypatch):
    """One small protocol on a CPU, its device's limits made up."""
    monkeypatch.setitem(PROTOCOLS, "cpu", (SMALL,))
    monkeypatch.setattr(tokens_per_s, "measured_peak", lambda device, dtype: PEAK)
    monkeypatch.setitem(harness.WARMUP_S, "cpu", 0.0)
    yield results
    if dist.is_initialized():
        dist.destroy_process_group()


def tokens_rows(folder: Path) -> dict[str, dict]:
    content = json.loads((folder / "tokens_per_s.json").read_text())
    return {row["name"]: row for row in content["results"]["rows"]}


def made_up(rate: float):
    return lambda protocol, ranks, peak: tokens_per_s._rates(rate, 2 * rate, 0.0)


def test_every_part_of_a_protocol_is_measured(small):
    assert main(["tokens_per_s"]) == 0
    rows = tokens_rows(small)
    names = ["quickstart update", "quickstart rollout", "quickstart step", "quickstart rollout + update"]
    assert list(rows) == names
    assert all(row["tokens_per_s"] > 0 and row["limit_tokens_per_s"] > 0 for row in rows.values())
    assert rows["quickstart update"]["updates"] == 3 and "update_s" in rows["quickstart step"]["phases"]
    both = [1 / rows[name]["tokens_per_s"] for name in names[:2]]
    assert rows[names[3]]["tokens_per_s"] == pytest.approx(1 / sum(both))


def test_times_of_zero_are_divided_by(small, monkeypatch):
    monkeypatch.setattr(tokens_per_s, "timed", lambda *_, **__: Timing(0.0, 0.0, 3))
    assert main(["tokens_per_s", "--only", "quickstart update", "--only", "quickstart rollout"]) == 0
    assert all(row["tokens_per_s"] > 1e9 for row in tokens_rows(small).values())


def test_a_part_that_fails_is_the_exit_code_and_hides_no_other(small, monkeypatch, capsys):
    monkeypatch.setattr(tokens_per_s, "PARTS", {"update": raises, "rollout": made_up(100.0), "step": made_up(50.0)})
    assert main(["tokens_per_s"]) == 1
    lines = capsys.readouterr().err.splitlines()[-2:]
    assert lines[0] == "bench tokens_per_s: quickstart update failed: RuntimeError: it broke"
    assert lines[1].startswith("bench tokens_per_s: quickstart rollout + update failed: ValueError: it follows from")
    rows = tokens_rows(small)
    assert rows["quickstart update"]["error"] == "RuntimeError: it broke"
    assert rows["quickstart rollout"]["tokens_per_s"] == 100.0 and rows["quickstart step"]["tokens_per_s"] == 50.0


def test_only_replaces_its_row_and_what_follows_from_it(small, monkeypatch):
    parts = {"update": made_up(100.0), "rollout": made_up(100.0), "step": made_up(50.0)}
    monkeypatch.setattr(tokens_per_s, "PARTS", parts)
    assert main(["tokens_per_s"]) == 0
    assert tokens_rows(small)["quickstart rollout + update"]["tokens_per_s"] == pytest.approx(50.0)
    monkeypatch.setattr(tokens_per_s, "PARTS", {"update": made_up(300.0)})
    assert main(["tokens_per_s", "--only", "quickstart update"]) == 0
    rows = tokens_rows(small)
    rates = [rows[SMALL.row_name(part)]["tokens_per_s"] for part in SMALL.parts]
    assert rates == pytest.approx([300.0, 100.0, 50.0, 75.0])
    headline = json.loads((small / "tokens_per_s.json").read_text())["headline"]
    assert [value for _, value, _ in headline] == ["300 tokens/s", "100 tokens/s", "50 tokens/s", "75 tokens/s"]


def test_rows_are_in_the_file_before_the_next_one_runs(small, monkeypatch):
    def killed(protocol, ranks, peak):
        raise KeyboardInterrupt

    monkeypatch.setattr(tokens_per_s, "PARTS", {"update": made_up(100.0), "rollout": killed})
    with pytest.raises(KeyboardInterrupt):
        main(["tokens_per_s"])
    assert list(tokens_rows(small)) == ["quickstart update"]


def test_on_a_gpu_the_memory_is_freed_before_a_row_and_its_peak_is_in_it(monkeypatch):
    told = []
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: told.append(name))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**30)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 4 * 2**30)
    monkeypatch.setattr(tokens_per_s, "PARTS", {"update": lambda *_: told.append("row") or {}, "rollout": raises})
    ranks = SimpleNamespace(device=CUDA, count=1)
    row = tokens_per_s._measured_row(SMALL, "update", [], ranks, PEAK)
    assert told == ["empty_cache", "reset_peak_memory_stats", "row"]
    assert (row["peak_allocated_gib"], row["peak_reserved_gib"]) == (3.0, 4.0) and "note" not in row
    failed = tokens_per_s._measured_row(SMALL, "rollout", [], ranks, PEAK)
    assert failed["error"] == "RuntimeError: it broke" and failed["peak_reserved_gib"] == 4.0
    assert "measures the host" in failed["note"] and "vLLM" in failed["note"]


def test_the_printed_table_says_what_a_rollout_on_a_gpu_measures(results, capsys):
    row = {"name": "1.5B 16k rollout", "note": tokens_per_s.HOST_BOUND, **made_up(100.0)(None, None, None)}
    tokens_per_s._report([row], PEAK, SimpleNamespace(device=CPU, count=1))
    printed = " ".join(capsys.readouterr().out.split())
    assert all(word in printed for word in ("built-in engine", "measures the host", "vLLM"))


def test_on_a_gpu_prime_rl_comes_first_and_the_long_updates_both_ways():
    names = tokens_per_s._names(PROTOCOLS["cuda"])
    assert names == [
        "prime_rl update",
        "1.5B 16k checkpointed update",
        "1.5B 16k checkpointed step",
        "prime_rl compiled update",
        "1.5B 16k compiled update",
        "1.5B 16k update",
        "1.5B 16k rollout",
        "1.5B 16k step",
        "1.5B 16k rollout + update",
    ]
    assert [p.checkpointing for p in PROTOCOLS["cuda"]] == [True, True, True, False, False]
    assert [p.compiled for p in PROTOCOLS["cuda"]] == [False, False, True, True, False]


# Other subjects: a row that fails is named, and the others are reported.


def test_a_kernel_that_does_not_compile_is_the_exit_code(results, monkeypatch, capsys):
    def compiled(variant, capability):
        if variant.kernel == "_equal_groups":
            raises()
        found = dict.fromkeys(compiled_kernels.FIGURES, 0)
        return {"kernel": variant.kernel, "variant": "plain", "sm": capability, **found}

    monkeypatch.setattr(compiled_kernels, "compiled", compiled)
    monkeypatch.setattr(compiled_kernels, "variants", compiled_kernels._of_groups)
    monkeypatch.setattr(compiled_kernels, "find_spec", lambda name: name)
    assert main(["compiled_kernels"]) == 1
    assert "_equal_groups for sm_90 failed: RuntimeError: it broke" in capsys.readouterr().err
    rows = json.loads((results / "compiled_kernels.json").read_text())["results"]
    assert {row["kernel"] for row in rows} == {"_ragged_groups"}


def test_without_triton_nothing_is_compiled_and_nothing_has_failed(monkeypatch, capsys):
    monkeypatch.setattr(compiled_kernels, "find_spec", lambda name: None)
    assert main(["compiled_kernels"]) == 0
    assert "compiled_kernels is not measured: it needs Triton" in capsys.readouterr().out


def test_a_run_that_does_not_learn_to_its_end_hides_no_other(results, monkeypatch, capsys):
    summary = dict.fromkeys(("accuracy_before", "greedy_before", "greedy_after", "train_s"), 0.1)
    summaries = {"seed-1": None} | {
        name: {**summary, "accuracy_after": after} for name, after in (("seed-2", 0.95), ("control-1", 0.1))
    }
    monkeypatch.setattr(learning_control, "_run", lambda name, *_: summaries[name])
    assert main(["learning_control", "--seeds", "1", "2", "--control_seeds", "1"]) == 1
    assert "seed-1 failed" in capsys.readouterr().err
    rows = json.loads((results / "learning_control.json").read_text())["results"]
    assert [(row["name"], row["bars_met"]) for row in rows] == [("seed-2", True), ("control-1", True)]


def test_a_verifier_that_fails_hides_no_other(results, tmp_path, monkeypatch, capsys):
    cases = tmp_path / "cases.jsonl"
    cases.write_text(json.dumps({"solutions": ["\\boxed{1}"], "generateds": ["1"]}))
    rates = rewards.Rates([1.0], [1.0], 0.1, 1.0)
    monkeypatch.setattr(rewards, "measure", lambda name, *_: raises() if name == "strict_boxed" else rates)
    monkeypatch.setattr(rewards.judged_steps, "measure", lambda _: raises())
    assert main(["rewards", "--cases", str(cases)]) == 1
    assert capsys.readouterr().err.splitlines()[-2:] == [
        f"bench rewards: {name} failed: RuntimeError: it broke" for name in ("strict_boxed", "judged_steps")
    ]
    assert list(json.loads((results / "rewards.json").read_text())["results"]) == ["math_verify"]
