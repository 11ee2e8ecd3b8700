"""A reward model behind HTTP: a small server in the test answers as vLLM does."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from fastgrpo.rewards import Item, Verdict, VerifierPool, reward_model
from fastgrpo.rewards.reward_model import NoScore
from tests.rewards.server import Server


def ask(reward: Any) -> float:
    return asyncio.run(reward("four", "4", prompt="How much?"))


def test_each_way_of_asking_is_vllms(server: Server) -> None:
    assert ask(reward_model(server.url("score"), model="m")) == 4.0
    assert ask(reward_model(server.url("classify"), headers={"Authorization": "Bearer x"}, use_activation=False)) == 4.0
    assert ask(reward_model(server.url("v1/pooling"), chat=False)) == 13.0
    turns = [{"role": "user", "content": "How much?"}, {"role": "assistant", "content": "four"}]
    assert [body for _, body, _ in server.asked] == [
        {"model": "m", "text_1": "How much?", "text_2": "four"},
        {"messages": turns, "use_activation": False},
        {"input": "How much?four"},
    ]
    assert {name.lower(): value for name, value in server.asked[1][2].items()}["authorization"] == "Bearer x"
    with pytest.raises(ValueError, match="/score, /classify or /pooling"):
        reward_model(server.url("v1/completions"))


def test_a_busy_server_is_asked_again_and_one_that_refuses_is_not(server: Server) -> None:
    reward = reward_model(server.url("score"))
    server.answers = [(503, {}), (429, {})]
    assert ask(reward) == 4.0 and len(server.asked) == 3
    server.answers = [(500, {})] * 4
    with pytest.raises(NoScore, match="answered 500"):
        ask(reward_model(server.url("score")))
    server.answers = [(404, {"error": "no such model"})]
    with pytest.raises(NoScore, match=r"answered 404: .*no such model"):
        ask(reward_model(server.url("score")))
    server.answers = [(200, {"data": []})]
    with pytest.raises(NoScore, match="without a score"):
        ask(reward_model(server.url("score")))
    assert len(server.asked) == 9


def test_it_judges_in_the_pool_and_a_server_that_is_down_is_refused_at_once(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "recipe.py"
    path.write_text(f"from fastgrpo.rewards import reward_model\nreward = reward_model({server.url('score')!r})\n")
    with VerifierPool(f"{path}:reward", 1, timeout_s=10, memory_limit_gib=2, concurrency=4) as pool:
        items = [Item("x" * n, "", {"prompt": "p"}) for n in range(20)]
        assert pool.score(items) == [Verdict(None, score=float(n)) for n in range(20)]
    path.write_text(path.read_text().replace(str(server.server_port), "9"))
    with pytest.raises(RuntimeError, match="cannot be reached"):
        VerifierPool(f"{path}:reward", 1, timeout_s=10, memory_limit_gib=2)
