"""JustRL (arXiv 2512.16649) and its ablations."""

from typing import Any

from tests.recipes.published import Beside, Published, System, at

PAPER = "arXiv 2512.16649, table 2"
SCRIPT = "thunlp/JustRL train/run_training.sh"
DEFAULTS = "thunlp/JustRL train/verl/trainer/config/ppo_trainer.yaml (the script leaves it)"
WORKERS = "thunlp/JustRL train/verl/workers/fsdp_workers.py"
DATASET = "thunlp/JustRL train/verl/utils/dataset/rl_dataset.py"
VERIFIER = "thunlp/JustRL train/verl/utils/reward_score/math_dapo.py, strict_box_verify=True"
ABLATIONS = "arXiv 2512.16649, section 4.4"
SUFFIX = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."

SETTINGS: dict[str, Published] = {
    **at(
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
    **at(
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
    **at(DEFAULTS, data__shuffle=True),
    **at(WORKERS + ": AdamW's own", optimizer__betas=[0.9, 0.999], optimizer__eps=1e-8),
    **at(
        DATASET,
        data__chat_template=True,
        data__suffix=SUFFIX,
        data__template="",
    ),
    **at(VERIFIER, reward__correct=1.0, reward__wrong=-1.0, reward__unformatted=None),
    **at(
        "thunlp/JustRL train/verl/trainer/main_ppo.py: no filter, no penalty, old logprobs by the trainer",
        rollout__no_signal="keep",
        rollout__max_staleness=0,
        rollout__oversample=1.0,
        rollout__stop_token_ids=[],
        objective__old_logprobs="recomputed",
        objective__correction="none",
    ),
    "objective.aggregation": Published(
        "token_mean",
        DEFAULTS,
        note="verl 0.4 takes this mean in each micro-batch; --fidelity verl does so too",
    ),
    "evaluation.temperature": Published(
        0.7,
        SCRIPT,
        note="with top-p 0.9 and 31,744 tokens there; here the sampler of training is asked, without top-p",
    ),
}
FIDELITY = {
    "optimizer.share_prompts": Published(False, f"{SCRIPT}: use_remove_padding, a prompt once for each response"),
    "objective.aggregation": Published(
        "microbatch_mean", "thunlp/JustRL train/verl/workers/actor/dp_actor.py: len(micro) / ppo_mini_batch_size"
    ),
    "data.suffix": Published(SUFFIX, DATASET),
    "data.shuffle": Published(True, DEFAULTS),
}
BESIDE = (
    Beside("Advantage", "(r - mean) / (std + 1e-6), unbiased", "the same", "core_algos.py in thunlp/JustRL train/verl"),
    Beside(
        "Order of the data",
        "random, seed 1, over the released file, which holds every row 100 times (1,791,700 rows)",
        "random, seed 1, every problem once in a pass over the 17,398 that differ",
        DEFAULTS,
    ),
    Beside(
        "Responses of an update",
        "dealt to the GPUs by length, then cut in that order: groups are torn",
        "whole groups, in the order of the prompts",
        "thunlp/JustRL train/verl/trainer/ppo/ray_trainer.py, _balance_batch; actor.shuffle is off",
    ),
    Beside(
        "Prefix and suffix of DAPO's prompts",
        "taken off by the authors (issue 1 of thunlp/JustRL), not by the released script",
        "taken off",
        "thunlp/JustRL issue 1",
    ),
    Beside("Sampler", "vLLM 0.8, eager, 32 engines", "vLLM of today or the built-in loop", SCRIPT),
    Beside("Precision", "float32 weights, bfloat16 compute, float32 reduction", "the same", WORKERS),
    Beside(
        "Warm-up",
        "from 0 in step 1 to the constant in step 11",
        "from a tenth in step 1 to the constant in step 10",
        "thunlp/JustRL train/verl/utils/torch_functional.py, get_constant_schedule_with_warmup",
    ),
)


def _system(model: str, steps: int, steps_source: str) -> System:
    return System(
        verifier=Published("strict_boxed", VERIFIER),
        settings={**SETTINGS, "model.path": Published(model, PAPER), "steps": Published(steps, steps_source)},
        fidelity=FIDELITY,
        beside=BESIDE,
    )


DEEPSEEK = _system("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", 4380, "arXiv 2512.16649, table 4")
NEMOTRON = _system("nvidia/OpenMath-Nemotron-1.5B", 3440, "arXiv 2512.16649, table 6")

OVERLONG = Published(
    [{"is": "OverlongPenalty", "buffer_tokens": 4096, "factor": 1.0}],
    f"{ABLATIONS} (the last 4k tokens, as in DAPO); thunlp/JustRL train/verl/workers/reward_manager/dapo.py",
)
ROBUST = Published(
    "deepscaler",
    f"{ABLATIONS} (DeepScaleR's verifier); ChenxinAn-fdu/POLARIS deepscaler/rewards/math_reward.py",
    note="whether theirs asked for </think> is not said; ours does",
)
STEPS = {"steps": "3,000 and more, says the paper; the curves part after about 2,000"}


def _ablation(verifier: Published, algorithm: dict[str, Published], **ours: Any) -> System:
    settings = {name: value for name, value in DEEPSEEK.settings.items() if name != "steps"}
    return System(
        verifier=verifier,
        settings=settings,
        algorithm=algorithm,
        fidelity=FIDELITY,
        ours={**STEPS, **ours},
        beside=(
            *BESIDE,
            Beside("Scale of the rewards", "normalised, says the paper, and not how", "+1 and -1 as before", ABLATIONS),
        ),
    )


SYSTEMS = {
    "justrl_deepseek_1_5b": DEEPSEEK,
    "justrl_nemotron_1_5b": NEMOTRON,
    "justrl_ablation_overlong": _ablation(DEEPSEEK.verifier, {"shaping": OVERLONG}),
    "justrl_ablation_overlong_robust_verifier": _ablation(ROBUST, {"shaping": OVERLONG}),
    "justrl_ablation_robust_verifier": _ablation(ROBUST, {}),
}
