"""Qwen2.5-32B: 45.9 to 61.9.

The average over the benchmarks of SimpleRL-Zoo, before and after.
"""

from fastgrpo_recipes.simplerl_zoo import _shared as zoo

from fastgrpo.rewards import self_test_of, simplerl_mix

config = zoo.zoo(
    "qwen2_5_32b",
    "Qwen/Qwen2.5-32B",
    template="boxed",
    bucket="hard",
    stop_token_ids=(),  # none in the released code: the tokenizer's end token alone
    kl_coef=0.001,
    tensor_parallel=8,
)
reward = simplerl_mix
self_test = self_test_of(reward)
row = zoo.row_of(config)
source = zoo.source
cost = "2,304 H100-hours (64 GPUs, 1.5 days)"
ranks = 64
