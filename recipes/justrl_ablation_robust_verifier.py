"""JustRL with DeepScaleR's verifier alone: the paper runs it with the overlong penalty only."""

from fastgrpo_recipes import justrl_deepseek_1_5b as base

from fastgrpo.config import with_settings
from fastgrpo.rewards import deepscaler, self_test_of

config = with_settings(base.config, {"name": "justrl_ablation_robust_verifier"})
reward = deepscaler
self_test = self_test_of(reward)
fidelity = base.fidelity
source = "ours, after JustRL, arXiv 2512.16649, section 4.4"
cost = "about 7,900 A800-hours for 3,000 steps, at JustRL's time a step"
ranks = base.ranks
