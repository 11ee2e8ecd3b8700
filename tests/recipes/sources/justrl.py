"""JustRL (arXiv 2512.16649) and its ablations."""

from tests.recipes.published import Constant, Detail, Run, System, given_by

PAPER = "arXiv 2512.16649, table 2"
ABLATIONS = "arXiv 2512.16649, section 4.4"
SCRIPT = "thunlp/JustRL train/run_training.sh"
DEFAULTS = "thunlp/JustRL train/verl/trainer/config/ppo_trainer.yaml (the script does not set it)"
MAIN = "thunlp/JustRL train/verl/trainer/main_ppo.py: no filter, no penalty, old logprobs by the trainer"
TRAINER = "thunlp/JustRL train/verl/trainer/ppo/ray_trainer.py"
CORE = "thunlp/JustRL train/verl/trainer/ppo/core_algos.py"
ACTOR = "thunlp/JustRL train/verl/workers/actor/dp_actor.py"
WORKERS = "thunlp/JustRL train/verl/workers/fsdp_workers.py"
PENALTY = "thunlp/JustRL train/verl/workers/reward_manager/dapo.py"
DATASET = "thunlp/JustRL train/verl/utils/dataset/rl_dataset.py"
VERIFIER = "thunlp/JustRL train/verl/utils/reward_score/math_dapo.py, strict_box_verify=True"
SCHEDULE = "thunlp/JustRL train/verl/utils/torch_functional.py, get_constant_schedule_with_warmup"
POLARIS = "ChenxinAn-fdu/POLARIS deepscaler/rewards/math_reward.py"
SUFFIX = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."

# What both models have, and the ablations where they say nothing else.
SHARED: dict[str, Constant] = {
    **given_by(
        PAPER,
        data__train="BytedTsinghua-SIA/DAPO-Math-17k",
        data__prompts_per_step=256,
        data__max_prompt_tokens=1024,
        rollout__group_size=8,
        rollout__max_response_tokens=15360,
        rollout__temperature=1.0,
        objective__clip_low=0.2,
        objective__clip_high=0.28,
        objective__kl_coef=0.0,
        objective__entropy_coef=0.0,
        optimizer__learning_rate=1e-6,
        optimizer__updates_per_step=4,  # mini-batches of 64 of the 256 prompts
    ),
    **given_by(
        SCRIPT,
        objective__dual_clip=10.0,
        optimizer__warmup_steps=10,
        optimizer__weight_decay=0.1,
        optimizer__max_grad_norm=1.0,
        optimizer__tokens_per_microbatch=32768,
        model__activation_checkpointing=True,
        evaluation__every_steps=50,
        evaluation__samples_per_prompt=32,
        checkpoint__every_steps=50,
    ),
    **given_by(DEFAULTS, data__shuffle=True),
    **given_by(f"{WORKERS}: AdamW's defaults", optimizer__betas=[0.9, 0.999], optimizer__eps=1e-8),
    **given_by(DATASET, data__chat_template=True, data__suffix=SUFFIX, data__template=""),
    **given_by(VERIFIER, reward="strict_boxed", reward__correct=1.0, reward__wrong=-1.0, reward__unformatted=None),
    **given_by(
        MAIN,
        rollout__zero_signal_groups="keep",
        rollout__max_staleness=0,
        rollout__oversample=1.0,
        rollout__stop_token_ids=[],
        objective__old_logprobs="recomputed",
        objective__correction="none",
    ),
    "objective.aggregation": Constant(
        "token_mean",
        DEFAULTS,
        note="verl 0.4 takes this mean in each micro-batch. `--fidelity verl` does so too.",
    ),
    "evaluation.temperature": Constant(
        0.7,
        SCRIPT,
        note="Theirs has top-p 0.9 and 31,744 tokens. Ours has no top-p and the response limit of training.",
    ),
}
FIDELITY = {
    **given_by(f"{ACTOR}: len(micro) / ppo_mini_batch_size", objective__aggregation="microbatch_mean"),
    **given_by(f"{SCRIPT}, use_remove_padding: a prompt once for each response", optimizer__share_prompts=False),
}
DETAILS = (
    Detail("Advantage", theirs="(r - mean) / (std + 1e-6), std unbiased", source=CORE),
    Detail(
        "Order of the data",
        theirs="random, seed 1, over the released file, which holds every row 100 times (1,791,700 rows)",
        ours="random, seed 1, each of the 17,398 different problems once in a pass",
        source=DEFAULTS,
    ),
    Detail(
        "Responses of an update",
        theirs="dealt to the GPUs by length and then cut in that order, so a group may be split",
        ours="whole groups, in the order of the prompts",
        source=f"{TRAINER}, _balance_batch (actor.shuffle is off)",
    ),
    Detail(
        "Instructions around DAPO's problems",
        theirs="removed before training, say the authors, but the released script does not do it",
        ours="removed",
        source="thunlp/JustRL issue 1",
    ),
    Detail(
        "Sampler",
        theirs="vLLM 0.8 without CUDA graphs, 32 engines",
        ours="the installed vLLM, or the built-in loop",
        source=SCRIPT,
    ),
    Detail("Precision", theirs="float32 weights, bfloat16 compute, float32 reduction", source=WORKERS),
    Detail(
        "Warm-up of the learning rate",
        theirs="0 in step 1, the constant from step 11 on",
        ours="a tenth of the constant in step 1, the constant from step 10 on",
        source=SCHEDULE,
    ),
)


def _model(path: str, steps: int, steps_source: str) -> Run:
    constants = {**SHARED, **given_by(PAPER, model__path=path), **given_by(steps_source, steps=steps)}
    return Run(constants=constants, fidelity=FIDELITY, details=DETAILS)


DEEPSEEK = _model("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", 4380, "arXiv 2512.16649, table 4")
NEMOTRON = _model("nvidia/OpenMath-Nemotron-1.5B", 3440, "arXiv 2512.16649, table 6")

OVERLONG = given_by(
    f"{ABLATIONS} (the last 4k tokens, as in DAPO), and {PENALTY}",
    algorithm__shaping=[{"is": "OverlongPenalty", "buffer_tokens": 4096, "factor": 1.0}],
)
ROBUST_VERIFIER = {
    "reward": Constant(
        "deepscaler",
        f"{ABLATIONS} (DeepScaleR's verifier), and {POLARIS}",
        note="The paper does not say whether theirs needs `</think>`. Ours does.",
    )
}


def _ablation(changes: dict[str, Constant]) -> Run:
    constants = {path: constant for path, constant in DEEPSEEK.constants.items() if path != "steps"}
    scale = Detail(
        "Scale of the rewards",
        theirs="normalised, but the paper does not say how",
        ours="+1 and -1, as before",
        source=ABLATIONS,
    )
    return Run(
        constants={**constants, **changes},
        chosen={"steps": "The paper says 3,000 and more. Its curves part after about 2,000. We keep JustRL's number."},
        fidelity=FIDELITY,
        details=(*DETAILS, scale),
        base="justrl_deepseek_1_5b",
    )


SYSTEMS = (
    System("JustRL", {"justrl_deepseek_1_5b": DEEPSEEK, "justrl_nemotron_1_5b": NEMOTRON}),
    System(
        "Ablations of JustRL",
        {
            "justrl_ablation_overlong": _ablation(OVERLONG),
            "justrl_ablation_overlong_robust_verifier": _ablation({**OVERLONG, **ROBUST_VERIFIER}),
            "justrl_ablation_robust_verifier": _ablation(ROBUST_VERIFIER),
        },
    ),
)
