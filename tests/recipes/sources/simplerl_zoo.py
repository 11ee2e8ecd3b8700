"""SimpleRL-Zoo (arXiv 2503.18892): ten base models, and each of them with a format reward."""

from dataclasses import dataclass, replace

from tests.recipes.published import Constant, Detail, Run, System, Words, given_by

PAPER = "arXiv 2503.18892"
SCRIPT = "hkust-nlp/simpleRL-reason train_grpo_math_tune_ray.sh"
COMMANDS = "hkust-nlp/simpleRL-reason README, section Training"
BUCKETS = f"{PAPER}, appendix B.1"
DATA = f"{BUCKETS}, and hkust-nlp/simpleRL-reason README, section Dataset"
DEFAULTS = "hkust-nlp/simpleRL-reason verl/trainer/config/ppo_trainer.yaml (the script does not set it)"
TRAINER = "hkust-nlp/simpleRL-reason verl/trainer/ppo/ray_trainer.py"
CORE = "hkust-nlp/simpleRL-reason verl/trainer/ppo/core_algos.py"
ROLLOUT = "hkust-nlp/simpleRL-reason verl/workers/rollout/vllm_rollout/vllm_rollout.py"
WORKERS = "hkust-nlp/simpleRL-reason verl/workers/fsdp_workers.py"
ACTOR = "hkust-nlp/simpleRL-reason verl/workers/actor/dp_actor.py"
DATASET = "hkust-nlp/simpleRL-reason verl/utils/dataset/rl_dataset.py"
TOKENIZE = "hkust-nlp/simpleRL-reason verl/utils/torch_functional.py, add_special_tokens=False"
REWARD = "hkust-nlp/simpleRL-reason verl/utils/reward_score/hf_math_verify.py, mix"
FORMAT_REWARD = "hkust-nlp/simpleRL-reason verl/utils/reward_score/simplelr_math.py, mix"
TEMPLATES = f"hkust-nlp/simpleRL-reason examples/simplelr_math_eval/utils.py, PROMPT_TEMPLATES, and {PAPER}, figure 10"

SIMPLE = "Question:\n{problem}\nAnswer:\nLet's think step by step.\n"
BOXED = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{problem}\n"
    "Please reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n<|im_start|>assistant\n"
)

# What all models have.
SHARED: dict[str, Constant] = {
    **given_by(
        COMMANDS,
        data__prompts_per_step=1024,
        rollout__group_size=8,
        rollout__max_response_tokens=8192,
        objective__entropy_coef=0.001,
        checkpoint__every_steps=5,
    ),
    **given_by(
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
    **given_by(DEFAULTS, data__shuffle=True, optimizer__warmup_steps=0, optimizer__max_grad_norm=1.0),
    **given_by(
        f"{WORKERS}: AdamW, with what the script does not set",
        optimizer__betas=[0.9, 0.999],
        optimizer__eps=1e-8,
        optimizer__weight_decay=0.01,
    ),
    **given_by(f"{CORE}: kl_penalty clamps to 10", objective__kl_cap=10.0),
    **given_by(f"{CORE}: compute_policy_loss has no second clip", objective__dual_clip=0.0),
    **given_by(TOKENIZE, data__chat_template=False, data__special_tokens=False),
    **given_by(REWARD, reward="simplerl_mix", reward__correct=1.0, reward__wrong=0.0, reward__unformatted=None),
    **given_by(
        f"{TRAINER}: no filter, old logprobs by the trainer",
        rollout__zero_signal_groups="keep",
        rollout__max_staleness=0,
        rollout__oversample=1.0,
        objective__old_logprobs="recomputed",
        objective__correction="none",
    ),
    **given_by(f"{PAPER}, section 2: one mean over all tokens", objective__aggregation="token_mean"),
}
DETAILS = (
    Detail("Advantage", theirs="(r - mean) / (std + 1e-6), std unbiased", source=CORE),
    Detail(
        "Responses of an update",
        theirs="dealt to the GPUs by length and then cut, so a group may be split",
        ours="whole groups",
        source=f"{TRAINER}, _balance_batch",
    ),
    Detail(
        "Prompts that are too long",
        theirs="left out above 1,024 characters, an error above 1,024 tokens",
        ours="left out above 1,024 tokens",
        source=DATASET,
    ),
    Detail(
        "Mean of the loss",
        theirs="in the code: over micro-batches of 2 responses, then over these, nearly one mean for each response",
        ours="one mean over all tokens of the update, as the paper says",
        source=f"{SCRIPT} and {ACTOR}",
    ),
    Detail(
        "What the verifier reads",
        theirs="prompt and response, but the response alone where the template is the boxed one",
        ours="the response alone",
        source=REWARD,
    ),
    Detail(
        "Rows of the data",
        theirs="8,523 in the released Hard file, and two of level 5 have no answer",
        ours="as released",
        source=BUCKETS,
    ),
)


@dataclass(frozen=True)
class Model:
    path: str
    family: str
    template: str
    bucket: str
    """The folder of hkust-nlp/SimpleRL-Zoo-Data, without the template's name."""
    stop: tuple[int, ...] = ()
    """Empty where the released code sets none for this model."""
    above_14b: bool = False

    @property
    def folder(self) -> str:
        return f"simplelr_{'abel' if self.template == SIMPLE else 'qwen'}_{self.bucket}"


EASY, MEDIUM, HARD = "gsm8k_level1", "level1to4", "level3to5"
QWEN_CHAT = (151645, 151643, 872, 77091, 1474, 71703, 151644, 8948)
QUESTION_ANSWER_PROBLEM = (14582, 16141, 31198)
MODELS = {
    "mistral_7b": Model("mistralai/Mistral-7B-v0.1", "mistral", SIMPLE, EASY, (22478, 24994, 26307, 9977, 933, 2820)),
    "llama_3_1_8b": Model("meta-llama/Llama-3.1-8B", "llama", SIMPLE, EASY, (14924, 16533)),
    "deepseek_math_7b": Model(
        "deepseek-ai/deepseek-math-7b-base", "llama", BOXED, EASY, (3631, 81038, 5726, 77398, 6713)
    ),
    "mistral_small_24b": Model(
        "mistralai/Mistral-Small-24B-Base-2501", "mistral", BOXED, HARD, (23836, 19464, 3263, 18993), above_14b=True
    ),
    "qwen2_5_0_5b": Model("Qwen/Qwen2.5-0.5B", "qwen2", SIMPLE, MEDIUM, QUESTION_ANSWER_PROBLEM),
    "qwen2_5_1_5b": Model("Qwen/Qwen2.5-1.5B", "qwen2", SIMPLE, HARD, QUESTION_ANSWER_PROBLEM),
    "qwen2_5_7b": Model("Qwen/Qwen2.5-7B", "qwen2", BOXED, HARD, QWEN_CHAT),
    "qwen2_5_math_7b": Model("Qwen/Qwen2.5-Math-7B", "qwen2", BOXED, HARD, (*QWEN_CHAT, 73594)),
    "qwen2_5_14b": Model("Qwen/Qwen2.5-14B", "qwen2", BOXED, HARD),
    "qwen2_5_32b": Model("Qwen/Qwen2.5-32B", "qwen2", BOXED, HARD, above_14b=True),
}
STEPS_GIVEN = ("qwen2_5_7b", "qwen2_5_14b")
FOUR_K_POSITIONS = ("deepseek_math_7b", "qwen2_5_math_7b")
SHORTER = Constant(
    8192,
    COMMANDS,
    ours=3072,
    # vllm_rollout.py asserts the room; the positions are in config.json of both models, and in that of the released
    # DeepSeek-Math-7B-SimpleRL-Zoo; the default is train_grpo_math_tune_ray.sh's.
    note="The model has 4,096 positions, and the released sampler asks for room for prompt and response: 8,192 cannot "
    "have run. 3,072 is the script's default.",
)


def _run(name: str, model: Model) -> Run:
    own = {
        **given_by(f"{PAPER}, section 2.1", model__path=model.path),
        **given_by("the model's config.json", model__family=model.family),
        **given_by(TEMPLATES, data__template=model.template),
        **given_by(DATA, data__train=f"hkust-nlp/SimpleRL-Zoo-Data:{model.folder}/train.parquet"),
        **given_by(COMMANDS, objective__kl_coef=1e-3 if model.above_14b else 1e-4),
        **given_by(ROLLOUT, rollout__stop_token_ids=list(model.stop)),
    }
    if name in STEPS_GIVEN:
        own |= given_by(f"{COMMANDS}: approximately 100 steps", steps=100)
    if name in FOUR_K_POSITIONS:
        own["rollout.max_response_tokens"] = SHORTER
    if name == "qwen2_5_32b":
        own |= given_by(COMMANDS, rollout__tensor_parallel=8)
    steps = "The figures show 100 to 150 steps. The README says about 100 for 7B and 14B."
    return Run(constants={**SHARED, **own}, chosen={} if name in STEPS_GIVEN else {"steps": steps}, details=DETAILS)


def _with_format_reward(run: Run, base: str) -> Run:
    verifier = Constant(
        Words("`mix` of `simplelr_math.py`"),
        FORMAT_REWARD,
        ours="format_penalty",
        note="Theirs compares answers with `math_equal` of Qwen's evaluation code, ours with math-verify.",
    )
    rewards = given_by(
        f"{FORMAT_REWARD}, and issue 37", reward__correct=1.0, reward__wrong=-0.5, reward__unformatted=-1.0
    )
    models = Detail(
        "Models",
        theirs="Llama-3.1-8B and Qwen2.5-7B",
        ours="all ten, although the simple template does not ask for a box",
        source=f"{PAPER}, figure 6, and {FORMAT_REWARD}",
    )
    return replace(
        run, constants={**run.constants, "reward": verifier, **rewards}, details=(*run.details, models), base=base
    )


PLAIN = {f"simplerl_zoo_{name}": _run(name, model) for name, model in MODELS.items()}
WITH_FORMAT_REWARD = {f"{name}_format_reward": _with_format_reward(run, base=name) for name, run in PLAIN.items()}
SYSTEMS = (System("SimpleRL-Zoo", PLAIN), System("SimpleRL-Zoo with a format reward", WITH_FORMAT_REWARD))
