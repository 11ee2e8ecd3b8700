"""JustRL with DAPO's soft penalty on the last 4,096 tokens: AIME24 50 where JustRL reaches 55."""

from fastgrpo_recipes import justrl_deepseek_1_5b as base

from fastgrpo.algorithm import Algorithm, OverlongPenalty
from fastgrpo.config import with_settings

config = with_settings(base.config, {"name": "justrl_ablation_overlong"})
reward = base.reward
self_test = base.self_test
algorithm = Algorithm(shaping=(OverlongPenalty(buffer_tokens=4096, factor=1.0),))
fidelity = base.fidelity
source = "JustRL, arXiv 2512.16649, section 4.4"
cost = "about 7,900 A800-hours for 3,000 steps, at JustRL's time a step"
ranks = base.ranks
