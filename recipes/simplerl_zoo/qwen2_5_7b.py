"""Qwen2.5-7B: 40.3 to 55.2.

The average over the benchmarks of SimpleRL-Zoo, before and after.
"""

from fastgrpo_recipes.simplerl_zoo import _shared as zoo

from fastgrpo.rewards import self_test_of, simplerl_mix

config = zoo.zoo(
    "qwen2_5_7b",
    "Qwen/Qwen2.5-7B",
    template="boxed",
    bucket="hard",
    stop_token_ids=(151645, 151643, 872, 77091, 1474, 71703, 151644, 8948),
    steps=100,
    tensor_parallel=2,
)
reward = simplerl_mix
self_test = self_test_of(reward)
row = zoo.row_of(config)
source = zoo.source
cost = "240 H100-hours (16 GPUs, 15 hours, about 100 steps)"
ranks = 16
