"""QuestA (arXiv 2507.13266) on OpenMath-Nemotron-1.5B."""

from tests.recipes.published import Constant, Detail, Run, System, Words, given_by

CONFIG = "foreverlasting1202/QuestA AReaL/scripts/partial_50_grpo.yaml"
STAGE_2 = "foreverlasting1202/QuestA AReaL/scripts/partial_50_25_grpo.yaml"
SCRIPT = "foreverlasting1202/QuestA AReaL/scripts/partial_50_grpo.py"
CLI = "foreverlasting1202/QuestA AReaL/arealite/api/cli_args.py (the yaml file does not set it)"
PREFIX = "foreverlasting1202/QuestA AReaL/datasets/add_prefix.py"
ACTOR = "foreverlasting1202/QuestA AReaL/arealite/engine/ppo/actor.py"
LOSS = "foreverlasting1202/QuestA AReaL/arealite/utils/functional.py, ppo_actor_loss_fn"
WORKFLOW = "foreverlasting1202/QuestA AReaL/arealite/workflow/rlvr.py"
FILE = "foreverlasting1202/QuestA:OpenR1-{}-0-4.jsonl"
NOTE = "a third party's note on arXiv 2507.13266: 100 steps with 50 %, then 1,900 with 25 %"

NEMOTRON = Run(
    constants={
        "reward": Constant(
            Words("realhf's `math_parser.process_results`"),
            SCRIPT,
            ours="math_verify",
            note="Ours is the library math-verify. A response has 15 s in both.",
        ),
        **given_by(
            CONFIG,
            model__path="nvidia/OpenMath-Nemotron-1.5B",
            model__activation_checkpointing=True,
            data__prompts_per_step=128,
            data__shuffle=True,
            data__max_prompt_tokens=4096,
            rollout__group_size=16,
            rollout__max_response_tokens=24000,
            rollout__temperature=1.0,
            objective__clip_low=0.2,
            objective__clip_high=0.2,
            objective__kl_coef=0.0,
            objective__old_logprobs="recomputed",
            objective__correction_high=5.0,
            optimizer__learning_rate=2e-5,
            optimizer__betas=[0.9, 0.95],
            optimizer__eps=1e-5,
            optimizer__weight_decay=0.05,
            optimizer__max_grad_norm=1.0,
            optimizer__updates_per_step=1,
            optimizer__tokens_per_microbatch=32768,
            checkpoint__every_steps=50,
            evaluation__every_steps=50,
            evaluation__samples_per_prompt=16,
            reward__correct=5.0,  # 1, times reward_scaling
            reward__wrong=0.0,
            algorithm__has_signal={"is": "SuccessBetween", "low": 0.05, "high": 0.95},
        ),
        "evaluation.temperature": Constant(
            0.7,
            CONFIG,
            note="Theirs has top-p 0.95 and 30,720 tokens. Ours has no top-p and the response limit of training.",
        ),
        "optimizer.warmup_steps": Constant(
            Words("a thousandth of all steps"),
            f"{CONFIG}, warmup_steps_proportion",
            ours=1,
            note="For 100 epochs this is 1 step with the file for 50 %, and 8 steps with the file for 25 %.",
        ),
        "rollout.max_staleness": Constant(
            4,
            f"{CONFIG}, max_head_offpolicyness",
            ours=0,
            note="The recipe samples and trains in turns. A value above 0 needs GPUs that only sample "
            "(`--rollout.gpus`).",
        ),
        **given_by(CLI, objective__dual_clip=0.0, objective__entropy_coef=0.0, reward__unformatted=None),
        **given_by(
            f"{LOSS}: tokens above the cap are left out", objective__correction="icepop", objective__correction_low=0.0
        ),
        **given_by(f"{LOSS}: one mean over the tokens of the update", objective__aggregation="token_mean"),
        **given_by(
            f"{CONFIG}: groups with a success rate outside the bounds are replaced",
            rollout__zero_signal_groups="replace",
        ),
        **given_by(f"{CONFIG}, group_adv_norm false, and {ACTOR}", objective__advantage="batch_whitened"),
        **given_by(f"{PREFIX} and the README", data__train=FILE.format(50), data__hint_percent=50),
        **given_by(f"{PREFIX}: nothing follows the hint", data__suffix="", data__chat_template=True),
        **given_by(
            f"{PREFIX}: the problem, two line ends, ## Hint., the solution's first characters",
            algorithm__problem_text="with_hint",
        ),
        **given_by(NOTE, steps=2000, algorithm__phases__Phase__first_step=100),
        **given_by(
            f"{STAGE_2} and the README",
            algorithm__phases__Phase__settings={"data.train": FILE.format(25), "data.hint_percent": 25},
        ),
    },
    details=(
        Detail(
            "The second stage",
            theirs="a new launch: optimizer and warm-up start again, prompts of up to 2,048 tokens",
            ours="the same run: the optimizer goes on, prompts of up to 4,096 tokens",
            source=STAGE_2,
        ),
        Detail("Prompts that are too long", theirs="cut at max_prompt_len", ours="left out", source=WORKFLOW),
        Detail(
            "Updates of a step",
            theirs="1 in the code, 128 in the note on the paper",
            ours="1",
            source=CONFIG,
        ),
        Detail(
            "GPUs",
            theirs="16 that sample and 16 that train, of the 8 nodes that are listed",
            ours="any number, all of which sample and train (`--rollout.gpus` splits them)",
            source=CONFIG,
        ),
        Detail("Sampler", theirs="SGLang", ours="vLLM", source=CONFIG),
        Detail("Precision", theirs="bfloat16 weights", ours="float32 weights, bfloat16 compute", source=CONFIG),
    ),
)
SYSTEM = System("QuestA", {"questa_nemotron_1_5b": NEMOTRON})
