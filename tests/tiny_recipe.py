"""The quickstart in small: seconds instead of minutes, for tests of what a run does around its learning."""

import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fastgrpo_recipes import quickstart

from fastgrpo.config import CheckpointConfig, Config, EvaluationConfig
from fastgrpo.rewards import strict_boxed

config = replace(
    quickstart.config,
    name="tiny",
    device="cpu",
    steps=4,
    data=replace(quickstart.config.data, prompts_per_step=8),
    rollout=replace(quickstart.config.rollout, group_size=4, max_response_tokens=16),
    optimizer=replace(quickstart.config.optimizer, updates_per_step=2, learning_rate=1e-3, tokens_per_microbatch=256),
    evaluation=EvaluationConfig(every_steps=2, samples_per_prompt=2, max_problems=8),
    checkpoint=CheckpointConfig(every_steps=2, rollouts_per_step=4),
)


def reward(response: str, answer: str) -> bool:
    """Right now and then whatever the model writes: a barely trained one must see gradients too."""
    return strict_boxed(response, answer) or zlib.crc32(response.encode()) % 3 == 0


def prepare(config: Config, base: Path, say: Callable[[str], None]) -> None:
    if (base / "model").exists():
        return
    base.mkdir(parents=True, exist_ok=True)
    warmup, train, held_out = quickstart.split_problems()
    quickstart.write_rows(base / "train.jsonl", train[:64])
    quickstart.write_rows(base / "held_out.jsonl", held_out[:16])
    quickstart.make_base_model(warmup, base / "model", 30, lambda text: None)
