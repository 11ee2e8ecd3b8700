"""The rewards that come with TRL, in our pool and called as TRL calls them: they must say the same."""

from pathlib import Path

import pytest

from fastgrpo.rewards import Item, VerifierPool

trl = pytest.importorskip("trl")

pytestmark = pytest.mark.peers

RECIPE = """
from fastgrpo.rewards import from_trl
from trl import rewards

accuracy = from_trl(rewards.accuracy_reward, conversational=True)
form = from_trl(rewards.think_format_reward, conversational=True)
form_alone = from_trl(rewards.think_format_reward, batch="response", conversational=True)
length = from_trl(rewards.get_soft_overlong_punishment(max_completion_len=8, soft_punish_cache=4))
"""
TEXTS = ["<think>\nHm.\n</think>\nIt is $4$.", "It is \\boxed{4}.", "It is \\boxed{5}.", ""]
IDS = [[1] * n for n in (3, 5, 7, 12)]
MESSAGES = [[{"role": "assistant", "content": text}] for text in TEXTS]


@pytest.mark.parametrize("name", ["accuracy", "form", "form_alone", "length"])
def test_what_trls_rewards_say_of_a_group_is_what_the_pool_gets(tmp_path: Path, name: str):
    from trl import rewards

    path = tmp_path / "recipe.py"
    path.write_text(RECIPE)
    row = {"prompt": "2+2?", "solution": "$4$", "level": 1}
    items = [Item(t, "4", {"prompt": "2+2?", "row": row, "response_ids": i}) for t, i in zip(TEXTS, IDS, strict=True)]
    columns = {"solution": ["$4$"] * 4, "level": [1] * 4}
    expected = {
        "accuracy": lambda: rewards.accuracy_reward(MESSAGES, **columns),
        "form": lambda: rewards.think_format_reward(MESSAGES, **columns),
        "form_alone": lambda: rewards.think_format_reward(MESSAGES, **columns),
        "length": lambda: rewards.get_soft_overlong_punishment(8, 4)(completion_ids=IDS, completions=TEXTS, **columns),
    }[name]()
    with VerifierPool(f"{path}:{name}", 1, timeout_s=30, memory_limit_gib=16, example=items[0]) as pool:
        verdicts = pool.score(items)
    assert [v.score if v.teaches else None for v in verdicts] == expected
    assert len(set(expected)) > 1 and not any(v.failure for v in verdicts)
