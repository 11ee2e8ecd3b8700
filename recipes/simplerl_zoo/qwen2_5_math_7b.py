"""Qwen2.5-Math-7B: 37.2 to 59.5.

The average over the benchmarks of SimpleRL-Zoo, before and after.
"""

from fastgrpo_recipes.simplerl_zoo import _shared as zoo

from fastgrpo.rewards import self_test_of, simplerl_mix

config = zoo.zoo(
    "qwen2_5_math_7b",
    "Qwen/Qwen2.5-Math-7B",
    template="boxed",
    bucket="hard",
    stop_token_ids=(151645, 151643, 872, 77091, 1474, 71703, 151644, 8948, 73594),
    max_response_tokens=3072,  # the script's default: the model has 4,096 positions
    tensor_parallel=2,
)
reward = simplerl_mix
self_test = self_test_of(reward)
row = zoo.row_of(config)
source = zoo.source
cost = "about 240 H100-hours, as the 7B of Qwen2.5"
ranks = 16  # as the 7B of Qwen2.5
