"""ProRL-V2 (NVIDIA's blog of August 2025, and two later scripts of its authors) and BroRL (arXiv 2510.01180)."""

from math import sqrt

from tests.recipes.published import Beside, Between, Published, System, at

V1 = "ProRL, arXiv 2505.24864"
BLOG = "NVIDIA's blog on ProRL v2"
NEMO = "NVIDIA-NeMo/RL examples/configs/prorlv2.v2.yaml"
OPENRLHF = "OpenRLHF/OpenRLHF examples/scripts/train_prorlv2_math_hybrid_engine.sh"
BROADENED = "BroRL, arXiv 2510.01180"
BOTH = f"{NEMO} and {OPENRLHF}"

SETTINGS: dict[str, Published] = {
    **at(
        V1,
        model__path="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
        data__train="agentica-org/DeepScaleR-Preview-Dataset",
    ),
    **at(f"{BROADENED}, table 1; {OPENRLHF}", data__prompts_per_step=512, rollout__group_size=16),
    **at(
        f"{BLOG}; {V1}", rollout__no_signal="replace", reward__correct=1.0, reward__wrong=0.0, reward__unformatted=None
    ),
    **at(
        BOTH,
        objective__clip_low=0.2,
        objective__clip_high=0.27,
        objective__kl="k2",
        objective__kl_coef=1e-4,
        objective__correction="icepop",
        objective__correction_low=0.5,
        objective__correction_high=5.0,
    ),
    **at(
        NEMO,
        objective__dual_clip=0.0,
        objective__kl_cap=10.0,  # after an input clamp of 20, which k2 never reaches below 10
        objective__entropy_coef=0.0,
        objective__aggregation="token_mean",
        rollout__max_rounds=10,
    ),
    **at(
        OPENRLHF,
        data__max_prompt_tokens=1024,
        rollout__max_response_tokens=8192,
        optimizer__learning_rate=1e-6,
        optimizer__updates_per_step=8,  # 512 x 16 responses, 1,024 an update
    ),
}
STOP_PROPERLY = {"is": "StopProperly", "factor": 0.0}
NO_TIMES = "not said for ProRL-V2"
UNKNOWN = {
    "data.suffix": "the prompt is not published",
    "rollout.temperature": f"{NO_TIMES}; 1.2 in {V1}, 1.0 in both scripts",
    "optimizer.warmup_steps": NO_TIMES,
    "optimizer.weight_decay": f"{NO_TIMES}; 0.01 in the file that NeMo-RL's inherits from",
    "optimizer.betas": f"{NO_TIMES}: AdamW's own",
    "optimizer.eps": f"{NO_TIMES}: AdamW's own",
    "optimizer.max_grad_norm": f"{NO_TIMES}; 1.0 in the file that NeMo-RL's inherits from",
}
DOMAINS = Beside(
    "Domains",
    "mathematics 40k, code 24k, STEM 25k, puzzles 37k, instructions 10k",
    "mathematics; code, STEM, puzzles and instructions are left out",
    V1,
)

PRORL = System(
    verifier=Published("prime_union", f"{V1}: DeepScaleR's verifier or math-verify"),
    settings={**SETTINGS, **at(f"{BLOG}; {BROADENED}, table 1", steps=3000)},
    algorithm={
        "advantages": Published("batch_normalised", f"{BLOG}; NVIDIA-NeMo/RL docs/guides/prorlv2.md"),
        "shaping.Cycled.on_steps": Published(100, BLOG),
        "shaping.Cycled.off_steps": Published(500, BLOG),
        "shaping.StopProperly.factor": Published(0.0, BOTH),
        "reference_reset.every_steps": Published(Between(200, 500), BLOG),
        "reference_reset.clear_optimizer": Published(False, f"{BLOG}; {V1} cleared it"),
    },
    ours={
        **UNKNOWN,
        "shaping": "the blog names a cosine; its ends are not published",
        "phases": "8k, 16k for some 200 steps, 8k for the last 1,000; N 16, 32, 16 (the first version's appendix E);"
        " at which steps is not published",
    },
    beside=(
        DOMAINS,
        Beside("Reference reset", "also on a KL spike or a stalled validation", "by steps alone", BLOG),
        Beside("Input clamp of the KL term", "20", "none: the output's cap of 10 is reached first", NEMO),
        Beside(
            "Dynamic sampling",
            "1.5 times the prompts, an error after 10 rounds",
            "as many as are missing, goes on with what it has after 10 rounds",
            NEMO,
        ),
    ),
)

BRORL = System(
    verifier=PRORL.verifier,
    settings={
        **{
            k: v
            for k, v in SETTINGS.items()
            if k not in ("objective.correction", "objective.correction_low", "objective.correction_high")
        },
        **at(BROADENED, data__prompts_per_step=128, rollout__group_size=512, rollout__no_signal="replace", steps=191),
        **at(f"{BROADENED}: truncated importance sampling", objective__correction="truncate"),
        "model.path": Published(
            "nvidia/Nemotron-Research-Reasoning-Qwen-1.5B", f"{BROADENED}: ProRL-V2 after 3,000 steps"
        ),
        "optimizer.learning_rate": Published(
            1e-6 * sqrt(128 * 512 / (512 * 16)),
            f"{BROADENED}: square root of the batches' ratio",
            note=f"of a base that it does not give: 1e-6 is that of {OPENRLHF}",
        ),
        "rollout.max_response_tokens": Published(
            16384,
            f"{BROADENED}: context of 16,384",
            note="whether the prompt counts in it is not said; here it does not",
        ),
    },
    algorithm={"advantages": PRORL.algorithm["advantages"]},
    ours={
        **UNKNOWN,
        "objective.correction_low": "the bound of the truncation is not published",
        "objective.correction_high": "the bound of the truncation is not published",
        "shaping": "not said for BroRL",
        "reference_reset": "not said for BroRL",
    },
    beside=(
        DOMAINS,
        Beside("Mini-batches of a step", "as many as in ProRL", "as many as in ours", BROADENED),
        Beside("Code", "none public", "this recipe", BROADENED),
    ),
)
SYSTEMS = {"prorl_v2_1_5b": PRORL, "brorl_1_5b": BRORL}
