"""SimpleRL-Zoo (arXiv 2503.18892): ten base models, and the ablation with a format reward."""

from dataclasses import dataclass, replace

from tests.recipes.published import Beside, Published, System, at

PAPER = "arXiv 2503.18892"
REPOSITORY = "hkust-nlp/simpleRL-reason"
SCRIPT = f"{REPOSITORY} train_grpo_math_tune_ray.sh"
README = f"{REPOSITORY} README, commands under Training"
DEFAULTS = f"{REPOSITORY} verl/trainer/config/ppo_trainer.yaml (the script leaves it)"
ROLLOUT = f"{REPOSITORY} verl/workers/rollout/vllm_rollout/vllm_rollout.py"
CORE = f"{REPOSITORY} verl/trainer/ppo/core_algos.py"
WORKERS = f"{REPOSITORY} verl/workers/fsdp_workers.py"
TOKENIZE = f"{REPOSITORY} verl/utils/torch_functional.py: add_special_tokens=False"
REWARD = f"{REPOSITORY} verl/utils/reward_score/hf_math_verify.py, mix"
FORMAT = f"{REPOSITORY} verl/utils/reward_score/simplelr_math.py, mix"
TEMPLATES = f"{REPOSITORY} examples/simplelr_math_eval/utils.py, PROMPT_TEMPLATES; {PAPER}, figure 10"
BUCKETS = f"{PAPER}, appendix B.1"

SIMPLE = "Question:\n{problem}\nAnswer:\nLet's think step by step.\n"
BOXED = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{problem}\n"
    "Please reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n<|im_start|>assistant\n"
)

SETTINGS: dict[str, Published] = {
    **at(
        README,
        data__prompts_per_step=1024,
        rollout__group_size=8,
        rollout__max_response_tokens=8192,
        objective__entropy_coef=0.001,
        checkpoint__every_steps=5,
    ),
    **at(
        SCRIPT,
        data__max_prompt_tokens=1024,
        rollout__temperature=1.0,
        objective__clip_low=0.2,
        objective__clip_high=0.2,
        objective__kl="k3",  # kl_loss_type low_var_kl
        optimizer__learning_rate=5e-7,
        optimizer__updates_per_step=4,  # mini-batches of 256 of the 1,024 prompts
        model__activation_checkpointing=True,
        evaluation__every_steps=5,
    ),
    **at(DEFAULTS, data__shuffle=True, optimizer__warmup_steps=0, optimizer__max_grad_norm=1.0),
    **at(
        f"{WORKERS}: AdamW as the script leaves it",
        optimizer__betas=[0.9, 0.999],
        optimizer__eps=1e-8,
        optimizer__weight_decay=0.01,
    ),
    **at(f"{CORE}: kl_penalty clamps to 10", objective__kl_cap=10.0),
    **at(f"{CORE}: compute_policy_loss has no second clip", objective__dual_clip=0.0),
    **at(TOKENIZE, data__chat_template=False, data__special_tokens=False),
    **at(REWARD, reward__correct=1.0, reward__wrong=0.0, reward__unformatted=None),
    **at(
        f"{REPOSITORY} verl/trainer/ppo/ray_trainer.py: no filter, old logprobs by the trainer",
        rollout__no_signal="keep",
        rollout__max_staleness=0,
        rollout__oversample=1.0,
        objective__old_logprobs="recomputed",
        objective__correction="none",
    ),
    "objective.aggregation": Published(
        "token_mean",
        f"{PAPER}, section 2: one mean over all tokens",
        note="the code takes it in micro-batches of two responses",
    ),
}
BESIDE = (
    Beside("Advantage", "(r - mean) / (std + 1e-6), unbiased", "the same", CORE),
    Beside(
        "Responses of an update",
        "dealt to the GPUs by length, then cut: groups are torn",
        "whole groups",
        f"{REPOSITORY} verl/trainer/ppo/ray_trainer.py, _balance_batch",
    ),
    Beside(
        "Long prompts",
        "dropped above 1,024 characters, an error above 1,024 tokens",
        "dropped above 1,024 tokens",
        f"{REPOSITORY} verl/utils/dataset/rl_dataset.py",
    ),
    Beside(
        "Mean of the loss in the code",
        "over micro-batches of 2 responses, then over these: nearly one mean a response",
        "one mean over all tokens, as the paper has it",
        f"{SCRIPT}; {REPOSITORY} verl/workers/actor/dp_actor.py",
    ),
    Beside(
        "What the verifier reads",
        "prompt and response; after the boxed template only the response",
        "the response",
        REWARD,
    ),
    Beside(
        "Rows of a bucket", "8,523 in the released Hard file; two of level 5 without an answer", "as released", BUCKETS
    ),
)


@dataclass(frozen=True)
class Base:
    path: str
    family: str
    template: str
    bucket: str  # the folder of hkust-nlp/SimpleRL-Zoo-Data, without its template's name
    stop: tuple[int, ...] | None  # None: the code sets none for this model
    above_14b: bool = False

    @property
    def folder(self) -> str:
        return f"simplelr_{'abel' if self.template == SIMPLE else 'qwen'}_{self.bucket}"


EASY, MEDIUM, HARD = "gsm8k_level1", "level1to4", "level3to5"
QWEN_CHAT = (151645, 151643, 872, 77091, 1474, 71703, 151644, 8948)
QUESTION_ANSWER_PROBLEM = (14582, 16141, 31198)
BASES = {
    "mistral_7b": Base("mistralai/Mistral-7B-v0.1", "mistral", SIMPLE, EASY, (22478, 24994, 26307, 9977, 933, 2820)),
    "llama_3_1_8b": Base("meta-llama/Llama-3.1-8B", "llama", SIMPLE, EASY, (14924, 16533)),
    "deepseek_math_7b": Base(
        "deepseek-ai/deepseek-math-7b-base", "llama", BOXED, EASY, (3631, 81038, 5726, 77398, 6713)
    ),
    "mistral_small_24b": Base(
        "mistralai/Mistral-Small-24B-Base-2501", "mistral", BOXED, HARD, (23836, 19464, 3263, 18993), above_14b=True
    ),
    "qwen2_5_0_5b": Base("Qwen/Qwen2.5-0.5B", "qwen2", SIMPLE, MEDIUM, QUESTION_ANSWER_PROBLEM),
    "qwen2_5_1_5b": Base("Qwen/Qwen2.5-1.5B", "qwen2", SIMPLE, HARD, QUESTION_ANSWER_PROBLEM),
    "qwen2_5_7b": Base("Qwen/Qwen2.5-7B", "qwen2", BOXED, HARD, QWEN_CHAT),
    "qwen2_5_math_7b": Base("Qwen/Qwen2.5-Math-7B", "qwen2", BOXED, HARD, (*QWEN_CHAT, 73594)),
    "qwen2_5_14b": Base("Qwen/Qwen2.5-14B", "qwen2", BOXED, HARD, None),
    "qwen2_5_32b": Base("Qwen/Qwen2.5-32B", "qwen2", BOXED, HARD, None, above_14b=True),
}
POSITIONS = "the model has 4,096 positions and the sampler wants room for prompt and response: 8,192 cannot have run"
"""``vllm_rollout.py`` asserts it; config.json of both models, and of the released DeepSeek-Math-7B-SimpleRL-Zoo."""


def _settings(name: str, base: Base) -> dict[str, Published]:
    own = {
        **at(PAPER + ", section 2.1", model__path=base.path),
        **at("the model's config.json", model__family=base.family),
        **at(TEMPLATES, data__template=base.template),
        **at(README, objective__kl_coef=1e-3 if base.above_14b else 1e-4),
        "data.train": Published(
            f"hkust-nlp/SimpleRL-Zoo-Data:{base.folder}/train.parquet", f"{BUCKETS}; {README}, under Dataset"
        ),
        "rollout.stop_token_ids": Published(list(base.stop or ()), ROLLOUT),
    }
    if name == "qwen2_5_math_7b":
        own["rollout.max_response_tokens"] = Published(
            8192, README, ours=3072, note=POSITIONS + "; 3,072 is the script's default"
        )
    if name == "deepseek_math_7b":
        own["rollout.max_response_tokens"] = Published(8192, README, ours=3072, note=POSITIONS)
    if name in ("qwen2_5_7b", "qwen2_5_14b"):
        own |= at(f"{README}: approximately 100 steps", steps=100)
    if name == "qwen2_5_32b":
        own |= at(README, rollout__tensor_parallel=8)
    return {**SETTINGS, **own}


def _plain(name: str, base: Base) -> System:
    settings = _settings(name, base)
    ours = {"data.suffix": "the template is the whole prompt"}
    if "steps" not in settings:
        ours["steps"] = "100 to 150 in the figures; the README has about 100 for 7B and 14B"
    return System(
        verifier=Published("simplerl_mix", REWARD),
        settings=settings,
        ours=ours,
        beside=BESIDE,
    )


def _with_format_reward(plain: System) -> System:
    return replace(
        plain,
        beside=(
            *plain.beside,
            Beside(
                "Models",
                f"figure 6 of {PAPER} has Llama-3.1-8B and Qwen2.5-7B",
                "all ten; the simple template asks for no box",
                FORMAT,
            ),
        ),
        verifier=Published(
            "format_penalty", FORMAT, note="theirs compares with the Qwen toolkit's math_equal, ours with math-verify"
        ),
        settings={
            **plain.settings,
            **at(f"{FORMAT}; issue 37", reward__correct=1.0, reward__wrong=-0.5, reward__unformatted=-1.0),
        },
    )


_PLAIN = {f"simplerl_zoo_{name}": _plain(name, base) for name, base in BASES.items()}
SYSTEMS = {**_PLAIN, **{f"{name}_format_reward": _with_format_reward(system) for name, system in _PLAIN.items()}}
