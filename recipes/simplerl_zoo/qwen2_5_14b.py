"""Qwen2.5-14B: 43.2 to 56.8.

The average over the benchmarks of SimpleRL-Zoo, before and after.
"""

from fastgrpo_recipes.simplerl_zoo import _shared as zoo

from fastgrpo.rewards import self_test_of, simplerl_mix

config = zoo.zoo(
    "qwen2_5_14b",
    "Qwen/Qwen2.5-14B",
    template="boxed",
    bucket="hard",
    stop_token_ids=(),  # none in the released code: the tokenizer's end token alone
    steps=100,
    tensor_parallel=2,
)
reward = simplerl_mix
self_test = self_test_of(reward)
row = zoo.row_of(config)
source = zoo.source
cost = "240 H100-hours (16 GPUs, 15 hours, about 100 steps)"
ranks = 16
