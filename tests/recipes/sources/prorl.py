"""ProRL-V2 (NVIDIA's blog of August 2025, and two later scripts of its authors) and BroRL (arXiv 2510.01180)."""

from math import sqrt

from tests.recipes.published import Constant, Detail, Range, Run, System, Words, given_by

PRORL_V1 = "ProRL, arXiv 2505.24864"
BLOG = "NVIDIA's blog on ProRL v2"
NEMO = "NVIDIA-NeMo/RL examples/configs/prorlv2.v2.yaml"
NEMO_GUIDE = "NVIDIA-NeMo/RL docs/guides/prorlv2.md"
OPENRLHF = "OpenRLHF/OpenRLHF examples/scripts/train_prorlv2_math_hybrid_engine.sh"
BOTH_SCRIPTS = f"{NEMO} and {OPENRLHF}"
BRORL_PAPER = "BroRL, arXiv 2510.01180"

# What both runs have.
SHARED: dict[str, Constant] = {
    **given_by(PRORL_V1, data__train="agentica-org/DeepScaleR-Preview-Dataset"),
    **given_by(f"{PRORL_V1}: DeepScaleR's verifier or math-verify", reward="prime_union"),
    **given_by(f"{BLOG} and {PRORL_V1}", reward__correct=1.0, reward__wrong=0.0, reward__unformatted=None),
    **given_by(f"{BLOG} and {NEMO_GUIDE}", objective__advantage="batch_normalised"),
    **given_by(
        BOTH_SCRIPTS,
        objective__clip_low=0.2,
        objective__clip_high=0.27,
        objective__kl="k2",
        objective__kl_coef=1e-4,
    ),
    **given_by(
        NEMO,
        objective__dual_clip=0.0,
        objective__kl_cap=10.0,  # after an input clamp of 20, which k2 never reaches below 10
        objective__entropy_coef=0.0,
        objective__aggregation="token_mean",
        rollout__max_rounds=10,
    ),
    **given_by(
        OPENRLHF,
        data__max_prompt_tokens=1024,
        optimizer__updates_per_step=8,  # 512 x 16 responses, 1,024 an update
    ),
}
CHOSEN_IN_BOTH = {
    "data.suffix": "JustRL's. The prompt is not published.",
    "rollout.temperature": "As in both scripts. The first version of ProRL has 1.2.",
    "optimizer.warmup_steps": "JustRL's.",
    "optimizer.weight_decay": "JustRL's. The file that NeMo-RL's configuration inherits from has 0.01.",
    "optimizer.betas": "AdamW's defaults.",
    "optimizer.eps": "AdamW's default.",
    "optimizer.max_grad_norm": "As in the file that NeMo-RL's configuration inherits from.",
}
DOMAINS = Detail(
    "Problems",
    theirs="mathematics 40k, code 24k, STEM 25k, puzzles 37k, instructions 10k",
    ours="mathematics alone",
    source=PRORL_V1,
)

PRORL = Run(
    constants={
        **SHARED,
        **given_by(PRORL_V1, model__path="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"),
        **given_by(f"{BLOG} and {BRORL_PAPER}, table 1", steps=3000),
        **given_by(f"{BRORL_PAPER}, table 1, and {OPENRLHF}", data__prompts_per_step=512, rollout__group_size=16),
        **given_by(f"{BLOG} and {PRORL_V1}", rollout__zero_signal_groups="replace"),
        **given_by(OPENRLHF, rollout__max_response_tokens=8192, optimizer__learning_rate=1e-6),
        **given_by(
            BOTH_SCRIPTS,
            objective__correction="icepop",
            objective__correction_low=0.5,
            objective__correction_high=5.0,
            algorithm__shaping__StopProperly__factor=0.0,
        ),
        **given_by(
            BLOG,
            algorithm__shaping__Cycled__on_steps=100,
            algorithm__shaping__Cycled__off_steps=500,
        ),
        "algorithm.reference_reset.every_steps": Constant(
            Range(200, 500), BLOG, note="The blog gives the range and no value."
        ),
        **given_by(f"{BLOG} (the first version cleared it)", algorithm__reference_reset__clear_optimizer=False),
    },
    chosen={
        **CHOSEN_IN_BOTH,
        "algorithm.shaping": "The blog says that the penalty is a cosine. Its two ends are not published.",
        "algorithm.phases": "The order is published, the steps are not. The response limit is 8k, then 16k for about "
        "200 steps, then 8k for the last 1,000. The group size is 16, then 32, then 16 (the first paper, appendix E).",
    },
    details=(
        DOMAINS,
        Detail(
            "When the reference is reset",
            theirs="also when the KL jumps or the validation stops improving",
            ours="by the number of steps alone",
            source=BLOG,
        ),
        Detail(
            "Clamp of the KL term's input",
            theirs="20",
            ours="none, as the cap of 10 on the output is reached first",
            source=NEMO,
        ),
        Detail(
            "Prompts of a round",
            theirs="1.5 times those of a step",
            ours="as many as are missing",
            source=NEMO,
        ),
        Detail(
            "After 10 rounds",
            theirs="an error",
            ours="the step goes on with the groups that it has",
            source=NEMO,
        ),
    ),
)

BRORL = Run(
    constants={
        **SHARED,
        **given_by(
            f"{BRORL_PAPER}: ProRL-V2 after 3,000 steps", model__path="nvidia/Nemotron-Research-Reasoning-Qwen-1.5B"
        ),
        **given_by(
            BRORL_PAPER,
            data__prompts_per_step=128,
            rollout__group_size=512,
            rollout__zero_signal_groups="replace",
            steps=191,
        ),
        **given_by(f"{BRORL_PAPER}: truncated importance sampling", objective__correction="truncate"),
        "optimizer.learning_rate": Constant(
            Words("ProRL's, times the square root of 8"),
            f"{BRORL_PAPER}: scaled by the square root of the ratio of the batches",
            ours=1e-6 * sqrt(128 * 512 / (512 * 16)),
            note="The paper does not give ProRL's rate. We scale 1e-6, the rate of OpenRLHF's script.",
        ),
        "rollout.max_response_tokens": Constant(
            16384,
            f"{BRORL_PAPER}: a context of 16,384",
            note="The paper does not say whether the prompt counts in it. Here it does not.",
        ),
    },
    chosen={
        **CHOSEN_IN_BOTH,
        "objective.correction_high": "fastgrpo's default.",
        "algorithm.shaping": "The paper names no penalty. We keep ProRL-V2's rule for responses that are cut off.",
        "algorithm.reference_reset": "The paper names no reset.",
    },
    details=(
        DOMAINS,
        Detail("Mini-batches of a step", theirs="as many as ProRL has", source=BRORL_PAPER),
        Detail("Code", theirs="not public", ours="this recipe", source=BRORL_PAPER),
    ),
)
SYSTEMS = (System("ProRL-V2", {"prorl_v2_1_5b": PRORL}), System("BroRL", {"brorl_1_5b": BRORL}))
