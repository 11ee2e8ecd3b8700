"""DAPO of Qwen2.5-32B: clip-higher, dynamic sampling, token mean, overlong penalty; AIME24 50 to 52."""

from fastgrpo.algorithm import Algorithm, OverlongPenalty
from fastgrpo.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    RolloutConfig,
)
from fastgrpo.data.instructions import DAPO_PREFIX, DAPO_SUFFIX
from fastgrpo.data.schemas import verl_row
from fastgrpo.rewards import dapo_minerva, self_test_of

config = Config(
    name="dapo_qwen2_5_32b",
    steps=320,
    model=ModelConfig(path="Qwen/Qwen2.5-32B", activation_checkpointing=True),
    data=DataConfig(
        train="BytedTsinghua-SIA/DAPO-Math-17k",
        template=DAPO_PREFIX + "{problem}" + DAPO_SUFFIX,
        max_prompt_tokens=2048,
        prompts_per_step=512,
    ),
    rollout=RolloutConfig(
        engine="vllm",
        tensor_parallel=4,
        group_size=16,
        max_response_tokens=20480,
        zero_signal_groups="replace",
        max_rounds=10,
    ),
    optimizer=OptimizerConfig(
        learning_rate=1e-6, updates_per_step=16, tokens_per_microbatch=22528, reduce_every_microbatch=True
    ),
    evaluation=EvaluationConfig(every_steps=5),
    checkpoint=CheckpointConfig(every_steps=5),
)
reward = dapo_minerva
self_test = self_test_of(reward)
algorithm = Algorithm(shaping=(OverlongPenalty(buffer_tokens=4096, factor=1.0),))
row = verl_row
source = "DAPO, arXiv 2503.14476; verl-project/verl-recipe dapo/run_dapo_qwen2.5_32b.sh"
cost = "about 21,400 A800-hours (128 GPUs; 5 days for 230 of 320 steps in a user's report, verl issue 795)"
ranks = 128
