"""JustRL-DeepSeek-1.5B: GRPO in one stage with fixed hyper-parameters; AIME24 from 29.9 to 52.6.

Every constant is the default of ``fastgrpo.config``, and those that make the run are repeated here to be read.
"""

from fastgrpo.config import Config, DataConfig, EvaluationConfig, ModelConfig, OptimizerConfig, RolloutConfig
from fastgrpo.rewards import self_test_of, strict_boxed

config = Config(
    name="justrl_deepseek_1_5b",
    steps=4380,
    model=ModelConfig(path="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", activation_checkpointing=True),
    data=DataConfig(train="BytedTsinghua-SIA/DAPO-Math-17k", prompts_per_step=256),
    rollout=RolloutConfig(engine="vllm", group_size=8, max_response_tokens=15360),
    optimizer=OptimizerConfig(learning_rate=1e-6, updates_per_step=4, tokens_per_microbatch=32768),
    evaluation=EvaluationConfig(every_steps=50, samples_per_prompt=32, temperature=0.7),
)
reward = strict_boxed
self_test = self_test_of(reward)

# The paper's table says nothing of the loss's mean; the released code takes it over each micro-batch, and computes a
# prompt once for each of its responses. Its separator, a blank line, is ours anyway; so is the order within a step, in
# which its updates do not shuffle the responses. The data it does shuffle.
fidelity = {"objective.aggregation": "microbatch_mean", "optimizer.share_prompts": False}

source = "JustRL, arXiv 2512.16649"
cost = "11,520 A800-hours (32 GPUs, 15 days)"
ranks = 32
published = {
    "source": "JustRL, arXiv 2512.16649, section 4.3 and figure 2",
    "bands": {"entropy": [1.2, 1.4], "reward": [-0.6, 0.4], "response_length": [4000, 8000]},
    "total_tokens": 1.4e11,
    "total_tokens_source": "JustRL, table 4: an upper bound, every response at the longest",
}
