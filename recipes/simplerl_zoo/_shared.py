"""What the SimpleRL-Zoo recipes share (arXiv 2503.18892; hkust-nlp/simpleRL-reason train_grpo_math_tune_ray.sh)."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from fastgrpo.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RewardConfig,
    RolloutConfig,
    with_settings,
)
from fastgrpo.data.instructions import SIMPLERL_TEMPLATES
from fastgrpo.data.schemas import verl_row

source = "SimpleRL-Zoo, arXiv 2503.18892"

# Folders of the data set: by template, then by difficulty.
FOLDERS = {"simple": "simplelr_abel", "boxed": "simplelr_qwen"}
BUCKETS = {"easy": "gsm8k_level1", "medium": "level1to4", "hard": "level3to5"}


def zoo(
    name: str,
    model: str,
    template: Literal["simple", "boxed"],
    bucket: Literal["easy", "medium", "hard"],
    stop_token_ids: tuple[int, ...],
    *,
    family: Literal["qwen2", "llama", "mistral"] = "qwen2",
    kl_coef: float = 1e-4,
    steps: int = 150,
    max_response_tokens: int = 8192,
    tensor_parallel: int = 1,
    reduce_every_microbatch: bool = True,
) -> Config:
    """The run of one base model: 1,024 prompts x 8, four updates of 256 prompts, a k3 divergence in the loss."""
    return Config(
        name=f"simplerl_zoo_{name}",
        steps=steps,
        model=ModelConfig(path=model, family=family, activation_checkpointing=True),
        data=DataConfig(
            train=f"hkust-nlp/SimpleRL-Zoo-Data:{FOLDERS[template]}_{BUCKETS[bucket]}/train.parquet",
            template=SIMPLERL_TEMPLATES[template],
            chat_template=False,  # the template has the chat's tokens already
            special_tokens=False,
            max_prompt_tokens=1024,
            prompts_per_step=1024,
        ),
        rollout=RolloutConfig(
            engine="vllm",
            tensor_parallel=tensor_parallel,
            group_size=8,
            max_response_tokens=max_response_tokens,
            temperature=1.0,
            stop_token_ids=stop_token_ids,
        ),
        reward=RewardConfig(correct=1.0, wrong=0.0),
        objective=ObjectiveConfig(
            clip_low=0.2, clip_high=0.2, dual_clip=0.0, kl="k3", kl_coef=kl_coef, kl_cap=10.0, entropy_coef=0.001
        ),
        optimizer=OptimizerConfig(
            learning_rate=5e-7,
            warmup_steps=0,
            weight_decay=0.01,
            max_grad_norm=1.0,
            updates_per_step=4,
            reduce_every_microbatch=reduce_every_microbatch,
        ),
        evaluation=EvaluationConfig(every_steps=5),
        checkpoint=CheckpointConfig(every_steps=5),
    )


def with_format_reward(config: Config) -> Config:
    """The variant of section 3.1: a right answer 1, a wrong one -0.5, and -1 without a box."""
    changed = {"reward.correct": 1.0, "reward.wrong": -0.5, "reward.unformatted": -1.0}
    return with_settings(config, {"name": f"{config.name}_format_reward", **changed})


def row_of(config: Config) -> Callable[[str, str, str], dict[str, Any]]:
    """A row of the data set: the template is in it already."""
    return partial(_row, config.data.template)


def _row(template: str, problem: str, answer: str, solution: str) -> dict[str, Any]:
    return verl_row(template.replace("{problem}", problem), answer, solution)
