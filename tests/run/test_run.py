"""What a run does around its learning: files, refusals, continuation, damage, signals, broken updates."""

import json
import os
import shutil
import signal
import threading
import time

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fastgrpo.command_line.exit_codes import SAVED
from fastgrpo.json_lines import JsonLines
from fastgrpo.run import inputs
from fastgrpo.train import main
from fastgrpo.trainer import Trainer
from tests.conftest import TINY

USER_ERROR = 2


def steps_of(folder):
    return [r["step"] for r in JsonLines(folder / "metrics.jsonl").read()]


def weights_of(folder, step):
    return AutoModelForCausalLM.from_pretrained(folder / "checkpoints" / f"step_{step:06d}" / "hf").state_dict()


def results(folder):
    """Metrics without what a clock says."""
    timed = ("_s", "tokens_per_s")
    return [{k: v for k, v in r.items() if not k.endswith(timed)} for r in JsonLines(folder / "metrics.jsonl").read()]


def test_a_run_leaves_metrics_summary_report_and_checkpoints(train, capfd):
    assert train() == 0
    assert steps_of(train.folder) == [0, 1, 2, 3, 4]
    summary = json.loads((train.folder / "summary.json").read_text())
    for name in (
        "accuracy_before",
        "accuracy_after",
        "greedy_before",
        "greedy_after",
        "train_s",
        "tokens_per_s",
        "seed",
    ):
        assert summary[name] is not None
    assert summary["steps"] == 4
    printed = capfd.readouterr().out
    for name in ("metrics.jsonl", "summary.json", "report.html", "checkpoints"):
        assert (train.folder / name).exists()
        assert str(train.folder / name) in printed.replace("\n", "")
    assert [p.name for p in sorted((train.folder / "checkpoints").glob("[!.]*"))] == ["step_000002", "step_000004"]
    rollouts = JsonLines(train.folder / "rollouts.jsonl").read()
    assert len(rollouts) == 16 and {r["reward"] for r in rollouts} == {1.0, -1.0}
    assert all(r["grad_norm"] > 0 for r in JsonLines(train.folder / "metrics.jsonl").read()[1:])


def test_the_export_loads_with_from_pretrained_and_changed_in_training(train):
    assert train() == 0
    base = AutoModelForCausalLM.from_pretrained(train.folder / "base" / "model")
    export = weights_of(train.folder, 4)
    assert export.keys() == base.state_dict().keys()
    assert any(not torch.equal(export[n], w) for n, w in base.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(train.folder / "checkpoints" / "step_000004" / "hf")
    text = "12+34=? Answer in \\boxed{}."
    assert tokenizer.tokenize(text) == AutoTokenizer.from_pretrained(train.folder / "base" / "model").tokenize(text)


def test_a_resumed_run_equals_one_that_never_stopped(train, tmp_path):
    assert train("--name", "tiny") == 0
    whole = results(train.folder), weights_of(train.folder, 4)
    shutil.copytree(train.folder / "base", tmp_path / "keep")
    assert train("--overwrite", "--steps", "2") == 0
    assert steps_of(train.folder) == [0, 1, 2]
    assert train("--resume") == 0
    assert results(train.folder) == whole[0]
    for name, weight in weights_of(train.folder, 4).items():
        assert torch.equal(weight, whole[1][name]), name


def test_evaluating_in_a_run_changes_nothing_of_its_training(train):
    assert train("--evaluation.every_steps", "1") == 0
    often = weights_of(train.folder, 4)
    assert train("--overwrite", "--evaluation.every_steps", "0") == 0
    for name, weight in weights_of(train.folder, 4).items():
        assert torch.equal(weight, often[name]), name


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(train, capfd):
    assert train() == 0
    whole = results(train.folder)
    shard = next((train.folder / "checkpoints" / "step_000004" / "shards").glob("*.distcp"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert train("--resume") == 0
    printed = capfd.readouterr().out.replace("\n", "")
    assert "step_000004 is damaged: shards" in printed and "another checksum" in printed
    assert "continuing from" in printed and "step_000002" in printed
    assert results(train.folder) == whole


def test_a_folder_with_a_run_is_refused_unless_told_otherwise(train, capfd):
    assert train("--steps", "1") == 0
    assert train("--steps", "1") == USER_ERROR
    assert "holds a run already" in capfd.readouterr().err
    assert train("--resume", "--optimizer.learning_rate", "0.5") == USER_ERROR
    assert "--optimizer.learning_rate: 0.001 there, 0.5 now" in capfd.readouterr().err
    assert train("--overwrite", "--optimizer.learning_rate", "0.5", "--steps", "1") == 0


def test_sigterm_saves_and_exits_with_its_own_code(train, monkeypatch):
    step = Trainer.step

    def interrupted(self):
        if self.progress.step == 0:
            threading.Timer(0.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
        return step(self)

    monkeypatch.setattr(Trainer, "step", interrupted)
    assert train() == SAVED
    saved = steps_of(train.folder)[-1]
    assert saved < 4 and (train.folder / "checkpoints" / f"step_{saved:06d}" / "state.json").exists()
    assert train("--resume") == 0
    assert steps_of(train.folder) == [0, 1, 2, 3, 4]


def test_a_gradient_that_is_not_finite_is_skipped_counted_and_kept(train, monkeypatch):
    break_update(monkeypatch, broken={1})
    assert train() == 0
    records = JsonLines(train.folder / "metrics.jsonl").read()
    assert [r.get("skipped_updates") for r in records] == [None, 1, 0, 0, 0]
    assert records[-1]["updates"] == 7
    batch = torch.load(next((train.folder / "skipped").iterdir()))
    assert {"input_ids", "advantages", "response_mask"} <= set(batch[0])
    assert all(torch.isfinite(w).all() for w in weights_of(train.folder, 4).values())


def test_too_many_broken_updates_in_a_row_stop_the_run_with_the_reason(train, monkeypatch, capfd):
    break_update(monkeypatch, broken=set(range(99)))
    assert train() == 1
    assert "3 updates in a row had a gradient norm of nan" in capfd.readouterr().err


def break_update(monkeypatch, broken):
    from fastgrpo.policy.learner import Learner

    backward, count = Learner.backward, iter(range(10**6))

    def broken_backward(self, update, sums):
        backward(self, update, sums)
        if next(count) in broken:
            self.parameters[0].grad.mul_(float("nan"))

    monkeypatch.setattr(Learner, "backward", broken_backward)


def test_a_verifier_that_hangs_or_dies_costs_its_response_and_never_the_run(train, tmp_path):
    recipe = tmp_path / "hostile.py"
    recipe.write_text(
        TINY.read_text()
        + """
def reward(response: str, answer: str) -> bool:
    import os, time

    if "```" in response:  # the one on which it is tried before the run
        return False
    if len(response) % 7 == 0:
        time.sleep(1000)
    if len(response) % 7 == 1:
        os._exit(3)
    return strict_boxed(response, answer)
"""
    )
    settings = ["--steps", "1", "--reward.timeout_s", "0.2", "--reward.workers", "2", "--data.held_out", ""]
    assert main([str(recipe), "--runs_dir", str(train.folder.parent), *settings]) == 0
    failures = JsonLines(train.folder / "metrics.jsonl").read()[-1]["verifier_failures"]
    assert 0 < failures < 32


def test_a_disk_without_room_for_a_checkpoint_is_refused_at_the_start(train, monkeypatch, capfd):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    assert train() == USER_ERROR
    assert "GiB free and a checkpoint needs" in capfd.readouterr().err


def test_a_disk_that_fills_up_later_stops_the_run_and_says_so(train, monkeypatch, capfd):
    monkeypatch.setattr(inputs, "require_space", lambda *arguments: None)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    assert train() == 1
    assert "checkpoint step_000002" in (err := capfd.readouterr().err) and "GiB free and a checkpoint needs" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model.path", "./nowhere"], "holds no config.json"),
        (["--data.train", "nowhere.parquet"], "does not exist"),
        (["--rollout.max_response_tokens", "300"], "cannot hold one longest sequence"),
        (["--data.prompts_per_step", "7"], "cannot be split into"),
        (["--optimizer.learning_rate", "-1"], "--optimizer.learning_rate must be above 0, got -1.0"),
        (["--data.max_prompt_tokens", "2"], "has at most --data.max_prompt_tokens 2 tokens"),
        (["--rollout.max_response_tokens", "240", "--optimizer.tokens_per_microbatch", "512"], "has 256 positions"),
        (["--parallel.replicas", "2"], "does not divide the 1 ranks"),
        (["--model.attention", "varlen"], "varlen has no CPU kernel"),
        (["--rollout.engine", "sglang"], "no engine 'sglang' (--rollout.engine): needed one of builtin, vllm"),
        (["--device", "cuda"], "needs a visible CUDA GPU"),
    ],
)
def test_what_cannot_run_is_refused_in_words(train, capfd, arguments, says):
    if arguments == ["--device", "cuda"] and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert train(*arguments) == USER_ERROR
    assert says in capfd.readouterr().err.replace("\n", " ")


def test_a_vocabulary_larger_than_the_models_is_refused(train, capfd):
    config = train.folder / "base" / "model" / "config.json"
    content = json.loads(config.read_text()) | {"vocab_size": 100}
    config.write_text(json.dumps(content))
    assert train() == USER_ERROR
    assert "has ids up to 275, its model only 100 rows" in capfd.readouterr().err


def test_an_unknown_flag_is_refused_with_the_nearest_name(train, capfd):
    with pytest.raises(SystemExit) as exit_:
        train("--optimizer.learning_rat", "1")
    assert exit_.value.code == USER_ERROR
    assert "--optimizer.learning_rate" in capfd.readouterr().err


def test_dry_run_prints_the_arithmetic_and_makes_nothing(train, capfd):
    assert train("--dry_run", "--name", "other") == 0
    printed = capfd.readouterr().out
    assert "responses per step: 8 prompts x 4 = 32" in printed
    assert "--optimizer.learning_rate 0.001" in printed
    assert not (train.folder.parent / "other").exists()


def test_a_refused_start_does_not_claim_the_folder(train, capfd):
    assert train("--data.train", "nowhere.parquet") == USER_ERROR
    capfd.readouterr()
    assert train("--steps", "1") == 0


def test_overwrite_removes_runs_and_nothing_else(train, capfd):
    foreign = train.folder.parent / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    assert train("--name", "foreign", "--overwrite") == USER_ERROR
    assert "holds files and no run" in capfd.readouterr().err
    assert (foreign / "thesis.tex").exists()
    for name in ("", "..", "a/b"):
        assert train("--name", name, "--overwrite") == USER_ERROR


def test_a_checkpoint_is_committed_soon_after_it_was_written_not_at_the_next(train, monkeypatch):
    seen = []
    step = Trainer.step

    def watched(self):
        seen.append(sorted(p.name for p in (train.folder / "checkpoints").glob("step_*")))
        time.sleep(0.5)
        return step(self)

    monkeypatch.setattr(Trainer, "step", watched)
    assert train("--steps", "6", "--checkpoint.every_steps", "2", "--data.held_out", "") == 0
    assert seen[3] == ["step_000002"]  # before step 4 is saved


def test_the_sampler_is_checked_whatever_the_old_logprobs_are(train):
    for old in ("recomputed", "rollout"):
        assert train("--overwrite", "--steps", "1", "--objective.old_logprobs", old) == 0
        record = JsonLines(train.folder / "metrics.jsonl").read()[-1]
        assert record["rollout_kl"] is not None and 0 < abs(record["rollout_kl"]) < 1e-4


def test_a_verifier_that_fails_its_self_test_is_refused(train, tmp_path, capfd):
    recipe = tmp_path / "lenient.py"
    recipe.write_text(TINY.read_text() + '\nself_test = [("anything", "1", False), ("\\\\boxed{1}", "2", True)]\n')
    assert main([str(recipe), "--runs_dir", str(train.folder.parent)]) == USER_ERROR
    assert "self-test" in capfd.readouterr().err
