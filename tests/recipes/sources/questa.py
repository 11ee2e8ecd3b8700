"""QuestA (arXiv 2507.13266) on OpenMath-Nemotron-1.5B."""

from tests.recipes.published import Beside, Published, System, at

REPOSITORY = "foreverlasting1202/QuestA"
CONFIG = f"{REPOSITORY} AReaL/scripts/partial_50_grpo.yaml"
CLI = f"{REPOSITORY} AReaL/arealite/api/cli_args.py (the file leaves it)"
PREFIX = f"{REPOSITORY} AReaL/datasets/add_prefix.py"
ACTOR = f"{REPOSITORY} AReaL/arealite/engine/ppo/actor.py"
LOSS = f"{REPOSITORY} AReaL/arealite/utils/functional.py, ppo_actor_loss_fn"
STAGE_2 = f"{REPOSITORY} AReaL/scripts/partial_50_25_grpo.yaml"
FILE = "foreverlasting1202/QuestA:OpenR1-{}-0-4.jsonl"
NOTE = "arXiv 2507.13266, by a third party's note: 100 steps with 50 %, then 1,900 with 25 %"

QUESTA = System(
    verifier=Published(
        "math_verify",
        "foreverlasting1202/QuestA AReaL/scripts/partial_50_grpo.py",
        note="theirs is realhf's math_parser.process_results, 15 s a response; ours is math-verify",
    ),
    settings={
        **at(
            CONFIG,
            model__path="nvidia/OpenMath-Nemotron-1.5B",
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
            model__activation_checkpointing=True,
            checkpoint__every_steps=50,
            evaluation__every_steps=50,
            evaluation__samples_per_prompt=16,
            evaluation__temperature=0.7,
            reward__correct=5.0,  # 1, times reward_scaling
            reward__wrong=0.0,
        ),
        "rollout.max_staleness": Published(
            4,
            f"{CONFIG}: max_head_offpolicyness",
            ours=0,
            note="samples and trains in turns; above 0 needs --rollout.gpus",
        ),
        **at(CLI, objective__dual_clip=0.0, objective__entropy_coef=0.0, reward__unformatted=None),
        **at(
            f"{LOSS}: tokens above the cap are left out", objective__correction="icepop", objective__correction_low=0.0
        ),
        **at(f"{LOSS}: one mean over the tokens of the update", objective__aggregation="token_mean"),
        **at(f"{CONFIG}: success rates outside the bounds are rejected and replaced", rollout__no_signal="replace"),
        **at(f"{PREFIX}; the README", data__train=FILE.format(50), data__hint_percent=50),
        **at(f"{PREFIX}: nothing follows the hint", data__suffix="", data__chat_template=True),
        **at(NOTE, steps=2000),
    },
    algorithm={
        "advantages": Published("batch_whitened", f"{CONFIG}: group_adv_norm false; {ACTOR}"),
        "has_signal": Published({"is": "SuccessBetween", "low": 0.05, "high": 0.95}, CONFIG),
        "phases.Phase.first_step": Published(100, NOTE),
        "phases.Phase.settings": Published(
            {"data.train": FILE.format(25), "data.hint_percent": 25}, f"{STAGE_2}; the README"
        ),
        "problem_text": Published(
            "with_hint", f"{PREFIX}: problem, two line ends, ## Hint., the solution's first characters"
        ),
    },
    ours={
        "optimizer.warmup_steps": "a thousandth of 100 epochs: 1 step for the file of 50 %, 8 for that of 25 %",
    },
    beside=(
        Beside(
            "The second stage",
            "another launch: optimizer and warm-up anew, prompts up to 2,048 tokens",
            "one run: the optimizer goes on, prompts up to 4,096 tokens",
            STAGE_2,
        ),
        Beside("Long prompts", "cut at max_prompt_len", "dropped", "QuestA AReaL/arealite/workflow/rlvr.py"),
        Beside("Updates of a step", "1 in the code; the note on the paper has 128", "1", CONFIG),
        Beside(
            "GPUs", "16 that sample and 16 that train, of the 8 nodes listed", "any split with --rollout.gpus", CONFIG
        ),
        Beside("Precision", "bfloat16 weights", "float32 weights, bfloat16 compute", CONFIG),
    ),
)
SYSTEMS = {"questa_nemotron_1_5b": QUESTA}
