"""An evaluation that vLLM draws."""

import pytest

from tests.evaluation.replier import replier
from tests.evaluation.running import evaluate, rows

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
