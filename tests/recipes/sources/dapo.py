"""DAPO (arXiv 2503.14476) as verl's authors reproduced it."""

from tests.recipes.published import Constant, Detail, Run, System, given_by

SCRIPT = "verl-project/verl-recipe dapo/run_dapo_qwen2.5_32b.sh"
DATA = "verl-project/verl-recipe dapo/prepare_dapo_data.sh"
TRAINER = "verl-project/verl-recipe dapo/dapo_ray_trainer.py"
VERIFIER = "verl's reward_score/math_dapo.py, strict_box_verify=False"
DEFAULTS = "verl's default, which the script does not change"

TEMPLATE = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n{problem}\n\n"
    'Remember to put your answer on its own line after "Answer:".'
)
"""The form of every prompt in BytedTsinghua-SIA/DAPO-Math-17k."""

QWEN_32B = Run(
    constants={
        "reward": Constant("dapo_minerva", f"{SCRIPT}, reward_manager dapo, and {VERIFIER}"),
        **given_by(
            SCRIPT,
            model__path="Qwen/Qwen2.5-32B",
            model__activation_checkpointing=True,
            data__prompts_per_step=512,
            data__max_prompt_tokens=2048,
            rollout__group_size=16,
            rollout__max_response_tokens=20480,
            rollout__temperature=1.0,
            rollout__zero_signal_groups="replace",  # filter_groups
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
            evaluation__every_steps=5,
            evaluation__temperature=1.0,
            checkpoint__every_steps=5,
            algorithm__shaping=[{"is": "OverlongPenalty", "buffer_tokens": 4096, "factor": 1.0}],
        ),
        **given_by(DATA, data__train="BytedTsinghua-SIA/DAPO-Math-17k"),
        **given_by(f"{DATA}: the prompts as they are", data__template=TEMPLATE, data__chat_template=True),
        **given_by(
            DEFAULTS,
            data__shuffle=True,
            optimizer__betas=[0.9, 0.999],
            optimizer__eps=1e-8,
            rollout__max_staleness=0,
            objective__old_logprobs="recomputed",
            objective__correction="none",
        ),
        **given_by(VERIFIER, reward__correct=1.0, reward__wrong=-1.0, reward__unformatted=None),
    },
    chosen={
        "steps": "The paper's figures end at about 6,000 updates. With 16 or a few more in a step these are about 320 "
        "steps (verl issue 795)."
    },
    details=(
        Detail(
            "Warm-up of the learning rate",
            theirs="0 in step 1, the constant from step 11 on",
            ours="a tenth of the constant in step 1, the constant from step 10 on",
            source="verl's utils/torch_functional.py",
        ),
        Detail(
            "Which groups are replaced",
            theirs="by accuracy, before the penalty",
            source=f"{SCRIPT}, filter_groups_metric=acc",
        ),
        Detail(
            "Prompts of a round",
            theirs="1,536, and groups that the step does not need are thrown away",
            ours="as many as are missing",
            source=f"{SCRIPT} and {TRAINER}",
        ),
        Detail(
            "After 10 rounds",
            theirs="an error",
            ours="the step goes on with the groups that it has",
            source=TRAINER,
        ),
        Detail(
            "Responses of an update",
            theirs="dealt to the GPUs by length and then cut, so a group may be split",
            ours="whole groups",
            source=f"{TRAINER}, _balance_batch",
        ),
        Detail(
            "Mean of the loss",
            theirs="in the code: over each micro-batch of up to 22,528 tokens a GPU, where 8 GPUs share a sequence",
            ours="one mean over all tokens of the update, as the paper says",
            source="verl's workers/actor/dp_actor.py of that commit",
        ),
        Detail("White space around a problem", theirs="kept", ours="removed", source=DATA),
        Detail("Prompts that are too long", theirs="cut from the left", ours="left out", source=SCRIPT),
        Detail("Top-p of the evaluation in training", theirs="0.7", ours="1.0", source=SCRIPT),
    ),
)
SYSTEM = System("DAPO", {"dapo_qwen2_5_32b": QWEN_32B})
