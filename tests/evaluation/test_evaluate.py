"""One evaluation from its command to its records."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastgrpo.config import ModelConfig
from fastgrpo.data import load_tokenizer
from fastgrpo.evaluate import main
from fastgrpo.evaluation import sampler
from fastgrpo.evaluation.records import read_evaluation
from fastgrpo.models.load import load_causal_lm
from fastgrpo.rewards import mathd_or_sympy
from fastgrpo.rollout.builtin.engine import BuiltinEngine
from fastgrpo.rollout.builtin.kv_cache import ATTENTION
from fastgrpo.rollout.generate import generate
from fastgrpo.types import Prompt, Sampling
from tests.evaluation.running import TEMPLATE, evaluate, rows, settings_of


@pytest.fixture(scope="module")
def done(tiny_base, tmp_path_factory):
    """An evaluation by the suite justrl, finished."""
    out = tmp_path_factory.mktemp("done")
    assert evaluate(tiny_base, out) == 0
    return out / "e"


@pytest.fixture
def copy(done, tmp_path):
    """A folder ``e`` of one's own, and where it is."""
    shutil.copytree(done, tmp_path / "e")
    return tmp_path


def test_every_response_is_there_once_with_its_verdict_by_the_suites_rule(done):
    drawn, judged = rows(done, "generations"), rows(done, "verdicts")
    assert [(r["problem"], r["sample"]) for r in drawn] == [(p, s) for p in range(16) for s in range(2)]
    answers = {p["problem"]: p["answer"] for p in map(json.loads, (done / "problems/held_out.jsonl").open())}
    assert [v["rule"] for v in judged] == [mathd_or_sympy(r["text"], answers[r["problem"]]) for r in drawn]
    assert all(v["model"] is None and v["failure"] == "" for v in judged)
    assert {r["finish_reason"] for r in drawn} <= {"stop", "length"}
    assert all(1 <= r["num_tokens"] <= 24 for r in drawn)


def test_the_records_read_back_are_those_of_the_files(done):
    evaluation = read_evaluation(done)
    [results] = evaluation.benchmarks
    judged = rows(done, "verdicts")
    assert results.outcomes().shape == (16, 2)
    assert results.outcomes().ravel().tolist() == [v["rule"] for v in judged]
    assert [j.text for j in results.judged] == [r["text"] for r in rows(done, "generations")]
    assert evaluation.about["suite"] == "justrl"
    protocol = evaluation.about["benchmarks"]["held_out"]
    assert (protocol["temperature"], protocol["top_p"], protocol["samples_per_problem"]) == (0.7, 0.9, 2)
    assert any("rule alone" in note for note in evaluation.about["notes"])


def test_tables_and_page_are_written(done):
    assert json.loads((done / "results.json").read_text())
    assert "held_out" in (done / "results.md").read_text()
    assert "<html" in (done / "report.html").read_text()


def test_responses_are_those_of_the_engine_with_the_papers_sampling(done, tiny_base):
    """From the model, the words and the numbers of the protocol, without anything of the evaluation."""
    tokenizer = load_tokenizer(str(tiny_base / "model"))
    path = str(tiny_base / "model")
    model = load_causal_lm(ModelConfig(path=path), torch.device("cpu"), torch.float32, ATTENTION)
    problems = [json.loads(line) for line in (tiny_base / "held_out.jsonl").open()]
    prompts = []
    for n, row in enumerate(problems):
        ids = tokenizer(TEMPLATE.replace("{problem}", row["prompt"][0]["content"]))["input_ids"]
        prompts.append(Prompt.of_ids(np.array(ids, np.int32), sampler.noise_position("held_out", n)))
    sampling = Sampling(2, 24, 0.7, (tokenizer.eos_token_id,), seed=1, top_p=0.9)
    groups = generate(BuiltinEngine(model, 8), prompts, sampling)
    texts = [tokenizer.decode(s.response.response_ids.tolist(), skip_special_tokens=True) for g in groups for s in g]
    assert texts == [r["text"] for r in rows(done, "generations")]
    whole = generate(BuiltinEngine(model, 8), prompts, replace(sampling, top_p=1.0))
    assert [s.response.response_ids.tolist() for g in whole for s in g] != [
        s.response.response_ids.tolist() for g in groups for s in g
    ]


@pytest.mark.slow
def test_what_a_benchmark_draws_does_not_depend_on_the_others(done, tiny_base, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text("".join((tiny_base / "train.jsonl").open().readlines()[:3]))
    both = [str(other), str(tiny_base / "held_out.jsonl")]
    arguments = settings_of(tiny_base, tmp_path)
    arguments[2:3] = both
    assert main(arguments) == 0
    assert rows(tmp_path / "e", "generations") == rows(done, "generations")
    first = rows(tmp_path / "e", "generations", "other")
    assert len(first) == 6 and [r["text"] for r in first[:2]] != [r["text"] for r in rows(done, "generations")[:2]]


def test_a_finished_evaluation_draws_and_judges_nothing_again(copy, tiny_base, monkeypatch, capsys):
    before = {p: p.read_bytes() for p in (copy / "e").rglob("*.jsonl")}
    monkeypatch.setattr(sampler, "start_engine", None)
    monkeypatch.setattr("fastgrpo.evaluation.verdicts.VerifierPool.score", None)
    assert evaluate(tiny_base, copy) == 0
    assert {p: p.read_bytes() for p in (copy / "e").rglob("*.jsonl")} == before
    assert "held_out" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changed, named",
    [
        (["--temperature", "0.6"], "held_out, temperature: 0.7 there, 0.6 now"),
        (["--top_p", "1"], "held_out, top_p: 0.9 there, 1.0 now"),
        (["--samples", "3"], "held_out, samples_per_problem: 2 there, 3 now"),
        (["--max_response_tokens", "25"], "held_out, max_response_tokens: 24 there, 25 now"),
        (["--template", "{problem}"], "held_out, template"),
        (["--seed", "2"], "seed: 1 there, 2 now"),
        (["--suite", "prorl"], "suite: 'justrl' there, 'prorl' now"),
        (["--rule", "fastgrpo.rewards:strict_boxed"], "rule: 'fastgrpo.rewards:mathd_or_sympy' there"),
        (["--problems", "4"], "held_out, num_problems: 16 there, 4 now"),
        (["--stop_token_ids", "7"], "stop_token_ids: [] there, [7] now"),
    ],
)
def test_another_protocol_does_not_go_on_in_a_folder_and_is_named(copy, tiny_base, capsys, changed, named):
    assert evaluate(tiny_base, copy, *changed) == 2
    said = capsys.readouterr().err
    assert said.startswith("fastgrpo: ") and named in said and "--overwrite" in said
    assert len(rows(copy / "e", "generations")) == 32


@pytest.mark.parametrize("content", ["[" * 200_000, "[1]", "{"])
def test_a_broken_record_of_an_evaluation_is_refused_in_words(copy, tiny_base, capsys, content):
    (copy / "e" / "evaluation.json").write_text(content)
    assert evaluate(tiny_base, copy) == 2
    assert "evaluation.json cannot be read" in capsys.readouterr().err


@pytest.mark.slow
def test_other_weights_in_the_models_folder_are_noticed(copy, tiny_base, tmp_path, capsys):
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    out = tmp_path / "out"
    assert evaluate(base, out) == 0
    weights = base / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    assert evaluate(base, out) == 2
    assert "model_fingerprint" in capsys.readouterr().err


@pytest.mark.slow
def test_other_problems_under_the_same_name_are_noticed(tiny_base, tmp_path, capsys):
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    assert evaluate(base, tmp_path) == 0
    lines = (base / "held_out.jsonl").read_text().splitlines(keepends=True)
    (base / "held_out.jsonl").write_text("".join([lines[1], lines[0], *lines[2:]]))
    assert evaluate(base, tmp_path) == 2
    assert "held_out: other prompts or answers, the first of them in row 0" in capsys.readouterr().err


@pytest.mark.slow
def test_a_benchmark_may_move_and_overwriting_starts_anew(copy, tiny_base, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(tiny_base, moved)
    before = rows(copy / "e", "generations")
    arguments = settings_of(tiny_base, copy)
    arguments[2] = str(moved / "held_out.jsonl")
    assert main(arguments) == 0
    assert evaluate(tiny_base, copy, "--seed", "2", "--overwrite") == 0
    assert rows(copy / "e", "generations") != before
    assert len(rows(copy / "e", "generations")) == len(rows(copy / "e", "verdicts")) == 32


def test_a_folder_of_other_files_is_left_alone(tiny_base, tmp_path, capsys):
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "thesis.txt").write_text("mine")
    assert evaluate(tiny_base, tmp_path, "--overwrite") == 2
    assert "no evaluation.json" in capsys.readouterr().err
    assert (tmp_path / "e" / "thesis.txt").read_text() == "mine"


def test_a_dry_run_says_all_and_writes_nothing(tiny_base, tmp_path, capsys):
    assert evaluate(tiny_base, tmp_path, "--dry_run") == 0
    said = capsys.readouterr().out
    assert "held_out: 16 problems" in said and "temperature 0.7" in said and "32 responses" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "give a model"),
        (["m", "--top_p", "0"], "--top_p must be above 0 and at most 1, got 0"),
        (["m", "--temperature", "-1"], "--temperature must be 0 or more"),
        (["m", "--samples", "0"], "--samples must be at least 1"),
        (["m", "--tensor_parallel", "2"], "--engine vllm"),
        (["m", "--engine", "sglang"], "--engine must be one of builtin, vllm"),
        (["m", "--behaviours", "http://localhost:1/v1"], "belong together"),
        (["m", "--compass_without_question"], "add --verifier_model"),
        (["m", "--benchmarks", "AIME99"], "no benchmark 'AIME99'"),
        (["m", "--benchmarks", "AIME24"], "git clone https://github.com/thunlp/JustRL"),
        (["m", "--benchmarks", "Minerva", "--data", "/nowhere"], "/nowhere/Minerva/test.parquet does not exist"),
        (["--compare", "/nowhere"], "no evaluation in /nowhere"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(arguments, said, capsys):
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_a_suite_that_leaves_the_words_open_asks_for_them(tiny_base, tmp_path, capsys):
    arguments = settings_of(tiny_base, tmp_path, "--suite", "simplerl")
    place = arguments.index("--template")
    del arguments[place : place + 2]
    assert main(arguments) == 2
    assert "--template simple" in capsys.readouterr().err
    assert evaluate(tiny_base, tmp_path, "--suite", "simplerl", "--template", "What is it?") == 2
    assert "--template needs {problem}" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sequence_beyond_the_models_positions_is_refused_unless_asked_for(tiny_base, tmp_path, capsys):
    assert evaluate(tiny_base, tmp_path, "--max_response_tokens", "250") == 2
    said = capsys.readouterr().err
    assert "256 positions" in said and "--extrapolate" in said
    assert evaluate(tiny_base, tmp_path, "--max_response_tokens", "250", "--extrapolate", "--problems", "2") == 0


def test_a_model_that_is_not_there_is_refused(tiny_base, tmp_path, capsys):
    arguments = settings_of(tiny_base, tmp_path)
    arguments[0] = str(tmp_path / "nothing")
    assert main(arguments) == 2
    assert "config.json" in capsys.readouterr().err


@pytest.mark.slow
def test_a_benchmark_keeps_repeated_problems_and_refuses_one_without_an_answer(tiny_base, tmp_path, capsys):
    lines = (tiny_base / "held_out.jsonl").open().readlines()
    repeated, unanswered = tmp_path / "repeated.jsonl", tmp_path / "unanswered.jsonl"
    repeated.write_text(lines[0] * 3)
    row = json.loads(lines[0])
    row["reward_model"]["ground_truth"] = ""
    unanswered.write_text(lines[1] + json.dumps(row) + "\n")
    arguments = settings_of(tiny_base, tmp_path)
    arguments[2] = str(repeated)
    assert main(arguments) == 0
    drawn = rows(tmp_path / "e", "generations", "repeated")
    assert [r["problem"] for r in drawn] == [0, 0, 1, 1, 2, 2]
    arguments[2] = str(unanswered)
    assert main(arguments) == 2
    assert "row 1 has no answer" in capsys.readouterr().err
