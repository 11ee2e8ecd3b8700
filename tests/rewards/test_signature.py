"""What a reward asks for by its parameters, through the pool."""

import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fastgrpo.rewards import Item, RewardError, Signature, Verdict, VerifierPool
from fastgrpo.rewards.signature import signature_of

NAMED = {
    "prompt": "How much?",
    "row": {"answer": "4", "half": 2.5},
    "response_ids": [7, 8],
    "finish_reason": "length",
    "group": ["other"],
}


def of_two(response: str, answer: str) -> bool: ...
def of_all(
    response: str, answer: str, prompt: str, row: dict, *, response_ids: list, finish_reason: str, group: list
): ...
def with_default(response: str, answer: str, scale: float = 1.0, row: Any = None): ...
async def later(response: str, answer: str, *, row: dict): ...


class Callable:
    def __call__(self, response: str, answer: str, prompt: str) -> float: ...


class Awaitable:
    async def __call__(self, response: str, answer: str) -> float: ...


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (of_two, Signature()),
        (lambda r, a: True, Signature()),
        (lambda *args: True, Signature()),
        (lambda r, a, **others: True, Signature()),
        (of_all, Signature(frozenset(NAMED))),
        (with_default, Signature(frozenset(["row"]))),
        (partial(with_default, scale=2.0), Signature(frozenset(["row"]))),
        (Callable(), Signature(frozenset(["prompt"]))),
        (later, Signature(frozenset(["row"]), is_async=True)),
        (partial(later), Signature(frozenset(["row"]), is_async=True)),
        (Awaitable(), Signature(is_async=True)),
    ],
)
def test_a_reward_asks_by_the_names_of_its_parameters(reward: Any, expected: Signature) -> None:
    assert signature_of(reward) == expected


def test_a_parameter_that_there_is_not_is_refused_with_what_there_is() -> None:
    with pytest.raises(TypeError, match=r"asks for 'level'.*prompt: .*row: .*response_ids: .*finish_reason: .*group: "):
        signature_of(lambda response, answer, level: True)
    with pytest.raises(TypeError, match="takes \\(response, answer\\)"):
        signature_of(lambda response: True)
    with pytest.raises(TypeError, match=r"TRL's rewards: take fastgrpo.rewards.from_trl of it"):
        signature_of(lambda prompts, completions, **kwargs: [0.0])
    for reward in (lambda response, row: True, lambda prompt, response: True):
        with pytest.raises(TypeError, match=r"gets response and answer first, and .* has '(row|prompt)' in"):
            signature_of(reward)


def write(folder: Path, source: str) -> str:
    path = folder / "recipe.py"
    path.write_text(textwrap.dedent(source))
    return f"{path}:reward"


def test_a_reward_gets_what_it_asks_for_and_nothing_else(tmp_path: Path) -> None:
    source = """
        def reward(response, answer, row, *, group, finish_reason, response_ids, prompt):
            known = prompt == "How much?" and group == ["other"] and finish_reason == "length"
            return {"half": row["half"], "ids": sum(response_ids), "known": known}
        def plain(response, answer):
            return True
    """
    name = write(tmp_path, source)
    example = Item("", "4", NAMED)
    with VerifierPool(name, 1, timeout_s=5, memory_limit_gib=1, example=example) as pool:
        (verdict,) = pool.score([Item("it is 4", "4", NAMED)])
        assert verdict == Verdict(None, score=18.5, parts={"half": 2.5, "ids": 15.0, "known": 1.0})
        with pytest.raises(ValueError, match="item 0 lacks what the reward asks for: finish_reason, group"):
            pool.score([("it is 4", "4")])
    with VerifierPool(name.replace(":reward", ":plain"), 1, timeout_s=5, memory_limit_gib=1) as pool:
        assert pool.score([("it is 4", "4"), Item("it is 4", "4", NAMED)]) == [Verdict(True)] * 2


def test_a_reward_that_asks_for_what_there_is_not_is_refused_before_it_judges(tmp_path: Path) -> None:
    name = write(tmp_path, "def reward(response, answer, levle): return True")
    with pytest.raises(ValueError, match=r"(?s)cannot load.*asks for 'levle'.*finish_reason"):
        VerifierPool(name, 1, timeout_s=5, memory_limit_gib=1)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("reward = lambda r, a: 1 / 0", r"ZeroDivisionError: division by zero \(.*recipe.py, line 1\)"),
        ("def reward(r, a):\n    import no_such_module", r"No module named 'no_such_module' \(.*recipe.py, line 2\)"),
        ("reward = lambda r, a: 'right'", "TypeError: a reward must return .* got str 'right'"),
        ("async def reward(r, a):\n    return [1.0]", "TypeError: a reward must return .* got list"),
        ("def reward(r, a, row):\n    return row['missing']", r"KeyError: 'missing' \(.*recipe.py, line 2\)"),
    ],
)
def test_a_reward_that_cannot_work_is_refused_with_the_last_line_of_its_traceback(
    tmp_path: Path, source: str, words: str
) -> None:
    with pytest.raises(RuntimeError, match=f"before any training it was called once.*{words}"):
        VerifierPool(write(tmp_path, source), 1, timeout_s=5, memory_limit_gib=1)


def test_a_reward_may_stop_the_run(tmp_path: Path) -> None:
    source = """
        from fastgrpo.rewards import RewardError
        def reward(response, answer):
            if response == "stop":
                raise RewardError("the judge's account is empty")
            return 1.0
    """
    with VerifierPool(write(tmp_path, source), 1, timeout_s=5, memory_limit_gib=1) as pool:
        with pytest.raises(RewardError, match="the judge's account is empty"):
            pool.score([("go on", ""), ("stop", "")])
        assert pool.score([("go on", "")]) == [Verdict(None, score=1.0)]


def test_a_reward_of_groups_that_returns_no_list_is_refused(tmp_path: Path) -> None:
    source = """
        from fastgrpo.rewards import Signature
        def reward(responses, answers):
            return True
        reward.called_as = Signature(whole_groups=True)
    """
    with pytest.raises(RuntimeError, match=r"called once.*TypeError: 'bool' object is not iterable"):
        VerifierPool(write(tmp_path, source), 1, timeout_s=5, memory_limit_gib=1)
