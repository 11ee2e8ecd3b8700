"""QuestA of OpenMath-Nemotron-1.5B: half of the solution in the prompt, then a quarter; AIME24 72.5.

The original is asynchronous, at most 4 versions behind; here a step follows the other. The hint is left out where
problems are held out.
"""

from fastgrpo.algorithm import Algorithm, Phase, SuccessBetween
from fastgrpo.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RewardConfig,
    RolloutConfig,
)
from fastgrpo.data.schemas import generation_row
from fastgrpo.rewards import math_verify, self_test_of
from fastgrpo.types import Prompt

MIN_HINT_CHARS = 10
HARDEST = "foreverlasting1202/QuestA:OpenR1-{percent}-0-4.jsonl"

config = Config(
    name="questa_nemotron_1_5b",
    steps=2000,
    model=ModelConfig(path="nvidia/OpenMath-Nemotron-1.5B", activation_checkpointing=True),
    data=DataConfig(
        train=HARDEST.format(percent=50), hint_percent=50, suffix="", max_prompt_tokens=4096, prompts_per_step=128
    ),
    rollout=RolloutConfig(engine="vllm", group_size=16, max_response_tokens=24000, zero_signal_groups="replace"),
    reward=RewardConfig(correct=5.0, wrong=0.0, timeout_s=15.0),
    objective=ObjectiveConfig(
        advantage="batch_whitened",
        clip_low=0.2,
        clip_high=0.2,
        dual_clip=0.0,
        correction="icepop",
        correction_low=0.0,
        correction_high=5.0,
    ),
    optimizer=OptimizerConfig(
        learning_rate=2e-5,
        warmup_steps=1,
        betas=(0.9, 0.95),
        eps=1e-5,
        weight_decay=0.05,
        updates_per_step=1,
        tokens_per_microbatch=32768,
    ),
    evaluation=EvaluationConfig(samples_per_prompt=16, temperature=0.7),
)
reward = math_verify
self_test = self_test_of(reward)


def with_hint(problem: Prompt, data: DataConfig) -> str | None:
    """The problem and the beginning of its solution, cut by characters (QuestA AReaL/datasets/add_prefix.py).

    None where the solution does not hold the answer: the row is broken.
    """
    if problem.answer not in problem.solution:
        return None
    hint = problem.solution[: len(problem.solution) * data.hint_percent // 100]
    return f"{problem.text}\n\n" + (f"## Hint.{hint}" if len(hint) >= MIN_HINT_CHARS else "")


algorithm = Algorithm(
    has_signal=SuccessBetween(0.05, 0.95),
    problem_text=with_hint,
    phases=(Phase(100, {"data.train": HARDEST.format(percent=25), "data.hint_percent": 25}),),
)
row = generation_row
source = "QuestA, foreverlasting1202/QuestA"
cost = "not published; 64 H800"
ranks = 64
