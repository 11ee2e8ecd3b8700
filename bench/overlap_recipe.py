"""The recipe of `bench overlap`: random weights, two-digit sums, and a verdict that costs almost nothing."""

import zlib
from collections.abc import Callable
from pathlib import Path

from fastgrpo_recipes import quickstart

from bench.shapes import Shape
from fastgrpo.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RolloutConfig,
    SyncConfig,
)

SHAPE = Shape("overlap", "qwen2", 4, 256, 768, 4, 4, 64, quickstart.VOCABULARY)

config = Config(
    name="overlap",
    device="cpu",
    model=ModelConfig(path="{run_dir}/base/model"),
    data=DataConfig(train="{run_dir}/base/train.jsonl", suffix="", max_prompt_tokens=32, prompts_per_step=32),
    rollout=RolloutConfig(engine="vllm", gpus=1, max_response_tokens=24, ignore_eos=True),
    sync=SyncConfig(compare_every=0),
    objective=ObjectiveConfig(old_logprobs="rollout", rollout_kl_alarm=0.0),
    optimizer=OptimizerConfig(tokens_per_microbatch=2048, updates_per_step=2),
    evaluation=EvaluationConfig(every_steps=0),
    checkpoint=CheckpointConfig(every_steps=0, rollouts_per_step=0),
)


def reward(response: str, answer: str) -> bool:
    """True for about half of all responses, so that every group is trained on."""
    return zlib.crc32(response.encode()) % 2 == 0


def prepare(config: Config, base: Path, say: Callable[[str], None]) -> None:
    """Makes the model and the data, unless the folder is copied from another run and has them."""
    import torch

    from bench.synthetic import random_model

    if base.exists():
        return
    base.mkdir(parents=True)
    problems, train, _ = quickstart.split_problems()
    quickstart.write_rows(base / "train.jsonl", train)
    tokenizer = quickstart.make_tokenizer([q + r for q, r in quickstart.demonstrations(problems)])
    tokenizer.save_pretrained(base / "model")
    random_model(SHAPE, torch.device("cpu"), torch.float32, "sdpa").save_pretrained(base / "model")
