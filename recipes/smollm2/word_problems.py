"""SmolLM2-135M-Instruct, a real pretrained model, on word problems, on a CPU.

Asked a short problem of one to three steps, the base rambles, is cut, and is right once in ten times. It never writes a
box, so the reward takes what it writes: the box, else the last number of a response. Sampler and trainer have one
temperature, at which half of the groups have right and wrong responses. All else is plain GRPO.
"""

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from fastgrpo_recipes.smollm2._base_model import make_base_model
from fastgrpo_recipes.smollm2._word_problems import word_problems

from fastgrpo.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    RolloutConfig,
)
from fastgrpo.rewards import self_test_of, simplerl_mix

config = Config(
    name="smollm2_word_problems",
    steps=40,
    model=ModelConfig(path="models/smollm2_135m_instruct", dtype="bfloat16"),
    data=DataConfig(
        train="{run_dir}/base/train.jsonl",
        held_out="{run_dir}/base/held_out.jsonl",
        suffix="",
        max_prompt_tokens=128,
        prompts_per_step=16,
    ),
    rollout=RolloutConfig(max_response_tokens=64, temperature=0.8),
    optimizer=OptimizerConfig(learning_rate=2e-5, warmup_steps=4, updates_per_step=2, tokens_per_microbatch=4096),
    evaluation=EvaluationConfig(every_steps=10, max_problems=256, samples_per_prompt=1, temperature=0.8),
    checkpoint=CheckpointConfig(every_steps=20),
)
source = "ours"
cost = "about 40 s a step at first, on two cores of a CPU"
ranks = 1  # of all cores: each rank would read all weights

NUM_HELD_OUT, NUM_TRAIN = 256, 4096

reward = simplerl_mix
self_test = self_test_of(reward)


def prepare(config: Config, base: Path, say: Callable[[str], None]) -> None:
    """Makes the model once, in the folder that its setting names, and the data of the run."""
    make_base_model(Path(config.model.path), say)
    base.mkdir(parents=True, exist_ok=True)
    problems = word_problems(seed=0)
    for name, count in (("held_out", NUM_HELD_OUT), ("train", NUM_TRAIN)):
        rows = [{"problem": p.text, "answer": str(p.answer), "level": p.num_steps} for p in islice(problems, count)]
        (base / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
