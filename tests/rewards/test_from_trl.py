"""TRL's reward functions, called as TRL calls them but for one prompt at a time."""

import asyncio
import textwrap
from pathlib import Path
from typing import Any

import pytest

from fastgrpo.rewards import Item, RewardError, Verdict, VerifierPool, from_trl

ROW = {"prompt": "How much?", "ground_truth": "4", "weight": 2.0}
GIVEN = {"prompt": ["How much?"] * 3, "row": [ROW] * 3, "response_ids": [[1], [2, 3], [4]]}
TEXTS, ANSWERS = ["it is 4", "it is 5", ""], ["4"] * 3


def test_a_function_gets_lists_of_the_group_and_the_columns_of_the_row() -> None:
    seen: dict[str, Any] = {}

    def reward(prompts, completions, **kwargs):
        seen.update(kwargs, prompts=prompts, completions=completions)
        return [1.0, None, 0]

    assert from_trl(reward)(TEXTS, ANSWERS, **GIVEN) == [1.0, None, 0]
    assert seen == {
        "prompts": ["How much?"] * 3,
        "completions": TEXTS,
        "completion_ids": [[1], [2, 3], [4]],
        "ground_truth": ["4"] * 3,
        "weight": [2.0] * 3,
    }


def test_a_function_without_kwargs_gets_what_it_names() -> None:
    def reward(completions, ground_truth):
        return [text.endswith(truth) for text, truth in zip(completions, ground_truth, strict=True)]

    assert from_trl(reward)(TEXTS, ANSWERS, **GIVEN) == [True, False, False]
    with pytest.raises(TypeError, match="asks for solution; the data has the columns ground_truth, weight"):
        from_trl(lambda completions, solution: [])(TEXTS, ANSWERS, **GIVEN)


def test_conversations_are_lists_of_messages() -> None:
    def reward(prompts, completions, **kwargs):
        assert prompts[0] == [{"role": "user", "content": "How much?"}]
        return [len(completion[0]["content"]) for completion in completions]

    assert from_trl(reward, conversational=True)(TEXTS, ANSWERS, **GIVEN) == [7, 7, 0]


def test_one_response_at_a_time_where_that_is_asked_for() -> None:
    one = {name: values[1] for name, values in GIVEN.items()}
    assert from_trl(lambda completions, **_: [0.5] * len(completions), batch="response")(TEXTS[1], "4", **one) == 0.5


def test_an_async_function_is_awaited() -> None:
    async def reward(completions, **kwargs):
        await asyncio.sleep(0)
        return [float(len(text)) for text in completions]

    assert asyncio.run(from_trl(reward)(TEXTS, ANSWERS, **GIVEN)) == [7.0, 7.0, 0.0]


def test_a_list_of_another_length_says_both_lengths() -> None:
    with pytest.raises(RewardError, match="got 3 completions and returned a list of 2 rewards"):
        from_trl(lambda completions, **_: [1.0, 2.0])(TEXTS, ANSWERS, **GIVEN)


def test_a_group_is_one_call_of_the_pool(tmp_path: Path) -> None:
    path = tmp_path / "recipe.py"
    path.write_text(
        textwrap.dedent("""
            from fastgrpo.rewards import from_trl

            def longest(completions, weight, **columns):
                if "hang" in completions:
                    while True: pass
                if "lose" in completions:
                    return [1.0]
                most = max(map(len, completions))
                return [w if len(text) == most else None for text, w in zip(completions, weight)]

            reward = from_trl(longest)
        """)
    )

    def group(*texts: str) -> list[Item]:
        return [Item(text, "4", {"prompt": "", "row": ROW, "response_ids": [1]}) for text in texts]

    with VerifierPool(f"{path}:reward", 2, 1.0, 1.0, example=group("")[0]) as pool:
        futures = [pool.submit(group(*texts)) for texts in (["a", "bb"], ["hang", "a"], ["ccc", "b", "ddd"])]
        best, nothing, late = Verdict(None, score=2.0), Verdict(None, teaches=False), Verdict(False, "timeout")
        assert [f.result() for f in futures] == [[nothing, best], [late, late], [best, nothing, best]]
        with pytest.raises(RewardError, match="longest got 2 completions and returned a list of 1 rewards"):
            pool.score(group("lose", "a"))
        assert pool.score([]) == []
