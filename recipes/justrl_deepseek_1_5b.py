"""JustRL-DeepSeek-1.5B (arXiv 2512.16649): GRPO in one stage with fixed hyper-parameters, 4,380 steps.

Every constant is the default of ``fastgrpo.config``. The published run took 15 days on 32 A800; AIME24 avg@32 went from
29.9 to 52.6.
"""

from fastgrpo.config import Config, DataConfig, EvaluationConfig, ModelConfig, OptimizerConfig
from fastgrpo.rewards import SELF_TEST, strict_boxed

config = Config(
    name="justrl_deepseek_1_5b",
    steps=4380,
    model=ModelConfig(path="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", activation_checkpointing=True),
    data=DataConfig(train="BytedTsinghua-SIA/DAPO-Math-17k", prompts_per_step=256),
    optimizer=OptimizerConfig(learning_rate=1e-6, updates_per_step=4, tokens_per_microbatch=32768),
    evaluation=EvaluationConfig(every_steps=50, samples_per_prompt=32),
)
reward = strict_boxed
self_test = SELF_TEST

published = {
    "source": "JustRL, arXiv 2512.16649, section 4.3 and figure 2",
    "bands": {"entropy": [1.2, 1.4], "reward": [-0.6, 0.4], "response_length": [4000, 8000]},
    "total_tokens": 1.4e11,
    "total_tokens_source": "JustRL, table 4: an upper bound, every response at the longest",
}
