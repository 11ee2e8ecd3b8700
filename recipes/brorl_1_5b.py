"""BroRL: ProRL-V2 goes on with 512 rollouts a problem; AIME24 57.5 after 191 steps."""

from math import sqrt

from fastgrpo_recipes import prorl_v2_1_5b as prorl

from fastgrpo.algorithm import Algorithm
from fastgrpo.config import with_settings

before = prorl.config
prompts_per_step, group_size = 128, 512
batch_ratio = prompts_per_step * group_size / (before.data.prompts_per_step * before.rollout.group_size)

config = with_settings(
    before,
    {
        "name": "brorl_1_5b",
        "steps": 191,
        "model.path": "nvidia/Nemotron-Research-Reasoning-Qwen-1.5B",
        "data.prompts_per_step": prompts_per_step,
        "rollout.group_size": group_size,
        "rollout.max_response_tokens": 16384,
        # By the square root of the batch, and as many updates a step as before.
        "optimizer.learning_rate": before.optimizer.learning_rate * sqrt(batch_ratio),
        "objective.correction": "truncate",
        "objective.correction_low": 0.0,
        "objective.correction_high": 2.0,
    },
)
reward = prorl.reward
self_test = prorl.self_test
algorithm = Algorithm(shaping=prorl.algorithm.shaping[:1])
row = prorl.row
source = "BroRL, arXiv 2510.01180"
cost = "11,123 H100-hours (64 GPUs, 173.8 hours)"
ranks = 64
