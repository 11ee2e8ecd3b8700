"""JustRL with the overlong penalty and DeepScaleR's verifier: AIME24 45 where JustRL reaches 55."""

from fastgrpo_recipes import justrl_ablation_overlong as overlong

from fastgrpo.config import with_settings
from fastgrpo.rewards import deepscaler, self_test_of

config = with_settings(overlong.config, {"name": "justrl_ablation_overlong_robust_verifier"})
reward = deepscaler
self_test = self_test_of(reward)
algorithm = overlong.algorithm
fidelity = overlong.fidelity
source = overlong.source
cost = overlong.cost
ranks = overlong.ranks
