"""Each technique of a recipe changes a number that it should change, and leaves alone what came before it.

A recipe runs in small twice, with the technique and without; both draw the same responses in their first step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from fastgrpo.algorithm.selection import scores_differ
from tests.recipes.shrunk import Metrics, run_shrunk

CLOCK = ("_s", "tokens_per_s")


@dataclass(frozen=True)
class Technique:
    recipe: str
    changes: Sequence[str]  # metrics of the step in which it first acts
    without: Sequence[str] = ()  # settings that take it away
    algorithm: dict[str, Any] = field(default_factory=dict)  # parts that take it away
    step: int = 1  # in which it first acts
    both: Sequence[str] = ()  # settings of either run


TECHNIQUES = {
    "overlong penalty": Technique("justrl_ablation_overlong", ["reward"], algorithm={"shaping": ()}),
    "DAPO's overlong penalty": Technique("dapo_qwen2_5_32b", ["reward"], algorithm={"shaping": ()}),
    "dynamic sampling": Technique(
        "dapo_qwen2_5_32b", ["sampling_rounds", "groups_dropped_all_wrong"], ["--rollout.zero_signal_groups", "keep"]
    ),
    "k3 divergence": Technique(
        "simplerl_zoo_qwen2_5_0_5b",
        ["grad_norm"],
        ["--objective.kl_coef", "0", "--optimizer.learning_rate", "1e-3"],
        step=2,
    ),
    "entropy bonus": Technique("simplerl_zoo_qwen2_5_7b", ["grad_norm"], ["--objective.entropy_coef", "0"]),
    "format reward": Technique("simplerl_zoo_mistral_7b_format_reward", ["reward"], ["--reward.unformatted", "-0.5"]),
    "batch normalisation": Technique("prorl_v2_1_5b", ["grad_norm"], ["--objective.advantage", "group_normalised"]),
    "cosine length penalty and stopping properly": Technique("prorl_v2_1_5b", ["reward"], algorithm={"shaping": ()}),
    "a phase of larger groups": Technique("prorl_v2_1_5b", ["total_tokens"], algorithm={"phases": ()}, step=2),
    "reference reset": Technique(
        "prorl_v2_1_5b", ["reference_kl"], algorithm={"reference_reset": None, "phases": ()}, step=2
    ),
    "k2 and not k1": Technique("prorl_v2_1_5b", ["reference_kl"], ["--objective.kl", "k1"], step=2),
    "hints": Technique("questa_nemotron_1_5b", ["entropy"], algorithm={"problem_text": None}),
    "a phase of smaller hints": Technique("questa_nemotron_1_5b", ["entropy"], algorithm={"phases": ()}, step=2),
    "whitened advantages": Technique(
        "questa_nemotron_1_5b", ["grad_norm"], ["--objective.advantage", "group_normalised"]
    ),
    "the learning rate of the batch": Technique("brorl_1_5b", ["learning_rate"], ["--optimizer.learning_rate", "1e-6"]),
    "verl's weights": Technique(
        "justrl_deepseek_1_5b",
        ["grad_norm"],
        ["--fidelity", "verl"],
        both=["--optimizer.no_share_prompts", "--optimizer.tokens_per_microbatch", "900"],
    ),
    "stopping at the words of another turn": Technique(
        "simplerl_zoo_llama_3_1_8b", ["response_length"], ["--rollout.stop_token_ids", "60", "61"]
    ),
}
FASTER = ["--optimizer.learning_rate", "1e-3"]  # so that a step moves what a figure of the next one shows


@pytest.mark.slow
@pytest.mark.parametrize("name", TECHNIQUES)
def test_a_technique_changes_its_numbers(name, tmp_path):
    technique = TECHNIQUES[name]
    settings = [*technique.both, *([] if "learning" in name else FASTER)]
    # The phases of a recipe would do to both what is looked at here.
    still = {} if "phase" in name else {"phases": ()}
    with_it = run_shrunk(technique.recipe, tmp_path / "with", *settings, **still)
    without = run_shrunk(
        technique.recipe, tmp_path / "without", *settings, *technique.without, **{**still, **technique.algorithm}
    )
    for step in range(1, technique.step):
        assert differing(with_it, without, step) <= {"clip_frac", "reference_kl", "grad_norm"}, "it acted too early"
    assert set(technique.changes) <= differing(with_it, without, technique.step)


def differing(one: Metrics, other: Metrics, step: int) -> set[str]:
    """Names of the figures that differ in a step by more than rounding, but for what a clock says."""
    a, b = one[step - 1], other[step - 1]
    names = {n for n in a.keys() | b.keys() if not n.endswith(CLOCK)}
    return {n for n in names if (a.get(n) or 0.0) != pytest.approx(b.get(n) or 0.0, rel=1e-5, abs=1e-12)}  # None is NaN


def test_a_group_whose_success_is_out_of_bounds_is_what_dapos_rule_drops_at_sixteen():
    """QuestA's bounds of 0.05 and 0.95 mean the same as some right and some wrong for its groups of 16."""
    import numpy as np

    from fastgrpo.algorithm.selection import SuccessBetween

    for right in range(17):
        verdicts = np.arange(16) < right
        assert SuccessBetween(0.05, 0.95)(verdicts) == scores_differ(verdicts)
