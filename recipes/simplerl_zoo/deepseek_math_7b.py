"""DeepSeek-Math-7B: 11.3 to 29.2.

The average over the benchmarks of SimpleRL-Zoo, before and after.
"""

from fastgrpo_recipes.simplerl_zoo import _shared as zoo

from fastgrpo.rewards import self_test_of, simplerl_mix

config = zoo.zoo(
    "deepseek_math_7b",
    "deepseek-ai/deepseek-math-7b-base",
    template="boxed",
    bucket="easy",
    stop_token_ids=(3631, 81038, 5726, 77398, 6713),
    family="llama",
    max_response_tokens=3072,  # of its 4,096 positions: the 8,192 of the others do not fit
)
reward = simplerl_mix
self_test = self_test_of(reward)
row = zoo.row_of(config)
source = zoo.source
cost = "about 240 H100-hours, as the 7B of Qwen2.5"
ranks = 16  # as the 7B of Qwen2.5
