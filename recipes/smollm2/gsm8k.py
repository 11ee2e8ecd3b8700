"""SmolLM2-135M-Instruct on GSM8K's own problems.

All is as in smollm2_word_problems but for the data and the longest response. The base is seldom right, so
that most groups teach nothing: `fastgrpo inspect` shows how many.
"""

from collections.abc import Callable
from pathlib import Path

from fastgrpo_recipes.smollm2 import word_problems
from fastgrpo_recipes.smollm2._base_model import make_base_model

from fastgrpo.config import Config, with_settings
from fastgrpo.rewards import self_test_of, simplerl_mix

config = with_settings(
    word_problems.config,
    {
        "name": "smollm2_gsm8k",
        "data.train": "openai/gsm8k:main/train-00000-of-00001.parquet",
        "data.held_out": "openai/gsm8k:main/test-00000-of-00001.parquet",
        "data.max_prompt_tokens": 256,
        "rollout.max_response_tokens": 192,
    },
)
reward = simplerl_mix
self_test = self_test_of(reward)
source = "ours"
cost = "not known yet"
ranks = 1


def prepare(config: Config, base: Path, say: Callable[[str], None]) -> None:
    """Makes the model once, in the folder that its setting names."""
    make_base_model(Path(config.model.path), say)
