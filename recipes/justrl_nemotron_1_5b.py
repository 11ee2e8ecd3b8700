"""JustRL-Nemotron-1.5B: the same run from OpenMath-Nemotron-1.5B; AIME24 from 58.8 to 69.7."""

from fastgrpo_recipes import justrl_deepseek_1_5b as deepseek

from fastgrpo.config import with_settings

config = with_settings(
    deepseek.config,
    {"name": "justrl_nemotron_1_5b", "steps": 3440, "model.path": "nvidia/OpenMath-Nemotron-1.5B"},
)
reward = deepseek.reward
self_test = deepseek.self_test
fidelity = deepseek.fidelity
source = deepseek.source
cost = deepseek.cost
ranks = deepseek.ranks
published = {
    "source": "JustRL, arXiv 2512.16649, table 6",
    "total_tokens": 1.1e11,
    "total_tokens_source": "an upper bound, every response at the longest",
}
