"""ProRL-V2 of DeepSeek-R1-Distill-Qwen-1.5B, its mathematics: 3,000 steps, with reference resets.

The original has code, STEM, puzzles and following instructions besides mathematics; those four are left out. It
published no configuration: constants are those of NVIDIA's two reproductions and its blog, or ours (docs/fidelity.md).
"""

from fastgrpo.algorithm import (
    Algorithm,
    CosineLengthPenalty,
    Cycled,
    Phase,
    ReferenceReset,
    StopProperly,
)
from fastgrpo.config import (
    Config,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RewardConfig,
    RolloutConfig,
)
from fastgrpo.data.schemas import solution_row
from fastgrpo.rewards import prime_union, self_test_of

config = Config(
    name="prorl_v2_1_5b",
    steps=3000,
    model=ModelConfig(path="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", activation_checkpointing=True),
    data=DataConfig(train="agentica-org/DeepScaleR-Preview-Dataset", prompts_per_step=512),
    rollout=RolloutConfig(
        engine="vllm", group_size=16, max_response_tokens=8192, zero_signal_groups="replace", max_rounds=10
    ),
    reward=RewardConfig(correct=1.0, wrong=0.0),
    objective=ObjectiveConfig(
        advantage="batch_normalised",
        clip_low=0.2,
        clip_high=0.27,
        dual_clip=0.0,
        kl="k2",
        kl_coef=1e-4,
        kl_cap=10.0,
        correction="icepop",
        correction_low=0.5,
        correction_high=5.0,
    ),
    optimizer=OptimizerConfig(learning_rate=1e-6, updates_per_step=8),
)
reward = prime_union
self_test = self_test_of(reward)
algorithm = Algorithm(
    shaping=(StopProperly(factor=0.0), Cycled(CosineLengthPenalty(), on_steps=100, off_steps=500)),
    reference_reset=ReferenceReset(every_steps=300, clear_optimizer=False),  # the first ProRL cleared it
    phases=(
        Phase(1200, {"rollout.group_size": 32}),
        Phase(1800, {"rollout.group_size": 16, "rollout.max_response_tokens": 16384}),
        Phase(2000, {"rollout.max_response_tokens": 8192}),
    ),
)
row = solution_row
source = "ProRL-V2, NVIDIA's blog; NVIDIA-NeMo/RL prorlv2.v2.yaml; OpenRLHF train_prorlv2_math_hybrid_engine.sh"
cost = "about 32,000 H100-hours: 16,000 of the first ProRL, and 1,000 steps more"
ranks = 32  # of the first ProRL, arXiv 2505.24864
