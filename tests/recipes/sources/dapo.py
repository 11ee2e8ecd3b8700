"""DAPO (arXiv 2503.14476) as verl reproduced it."""

from tests.recipes.published import Beside, Published, System, at

SCRIPT = "verl-project/verl-recipe dapo/run_dapo_qwen2.5_32b.sh"
DATA = "verl-project/verl-recipe dapo/prepare_dapo_data.sh"
TRAINER = "verl-project/verl-recipe dapo/dapo_ray_trainer.py"
VERIFIER = "verl's reward_score/math_dapo.py, strict_box_verify=False"
DEFAULTS = "verl's default, which the script leaves"

TEMPLATE = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n{problem}\n\n"
    'Remember to put your answer on its own line after "Answer:".'
)
"""As BytedTsinghua-SIA/DAPO-Math-17k has every prompt."""

DAPO = System(
    verifier=Published("dapo_minerva", f"{SCRIPT}: reward_manager dapo; {VERIFIER}"),
    settings={
        **at(
            SCRIPT,
            model__path="Qwen/Qwen2.5-32B",
            data__prompts_per_step=512,
            data__max_prompt_tokens=2048,
            rollout__group_size=16,
            rollout__max_response_tokens=20480,
            rollout__temperature=1.0,
            rollout__no_signal="replace",  # filter_groups
            rollout__max_rounds=10,
            rollout__tensor_parallel=4,
            objective__clip_low=0.2,
            objective__clip_high=0.28,
            objective__dual_clip=10.0,
            objective__kl_coef=0.0,
            objective__entropy_coef=0.0,
            objective__aggregation="token_mean",
            optimizer__learning_rate=1e-6,
            optimizer__warmup_steps=10,
            optimizer__weight_decay=0.1,
            optimizer__max_grad_norm=1.0,
            optimizer__updates_per_step=16,  # mini-batches of 32 of the 512 prompts
            model__activation_checkpointing=True,
            evaluation__every_steps=5,
            evaluation__temperature=1.0,
            checkpoint__every_steps=5,
        ),
        **at(DATA, data__train="BytedTsinghua-SIA/DAPO-Math-17k"),
        **at(f"{DATA}: the prompts as they are", data__template=TEMPLATE, data__chat_template=True),
        **at(
            DEFAULTS,
            data__shuffle=True,
            optimizer__betas=[0.9, 0.999],
            optimizer__eps=1e-8,
            rollout__max_staleness=0,
            objective__old_logprobs="recomputed",
            objective__correction="none",
        ),
        **at(VERIFIER, reward__correct=1.0, reward__wrong=-1.0, reward__unformatted=None),
    },
    algorithm={
        "shaping": Published([{"is": "OverlongPenalty", "buffer_tokens": 4096, "factor": 1.0}], SCRIPT),
    },
    ours={"steps": "6,000 updates in the paper's figures are about 320 steps of 16 and more (verl issue 795)"},
    beside=(
        Beside(
            "Warm-up",
            "from 0 in step 1 to the constant in step 11",
            "from a tenth in step 1 to the constant in step 10",
            "verl's utils/torch_functional.py",
        ),
        Beside("Filter", "on accuracy, before the penalty", "the same", f"{SCRIPT}: filter_groups_metric=acc"),
        Beside(
            "Prompts of a round",
            "1,536, what is left over is thrown away",
            "as many as are missing",
            f"{SCRIPT}; {TRAINER}",
        ),
        Beside(
            "Responses of an update",
            "dealt to the GPUs by length, then cut: groups are torn",
            "whole groups",
            f"{TRAINER}, _balance_batch",
        ),
        Beside(
            "Mean of the loss in the code",
            "over each micro-batch of up to 22,528 tokens a GPU, 8 of which share a sequence",
            "one mean over all tokens, as the paper has it",
            "verl's workers/actor/dp_actor.py of that commit",
        ),
        Beside("After 10 rounds", "an error", "goes on with what it has", TRAINER),
        Beside("White space around a problem", "kept", "taken off", DATA),
        Beside("Long prompts", "cut from the left", "dropped", SCRIPT),
        Beside("Validation", "top-p 0.7", "no top-p", SCRIPT),
    ),
)
SYSTEMS = {"dapo_qwen2_5_32b": DAPO}
