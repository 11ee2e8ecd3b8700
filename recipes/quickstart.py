"""The quickstart: a model of half a million parameters learns on a CPU that working a sum out pays.

The task is the addition of two-digit numbers, in DAPO-Math-17k's row schema. The base model is made on the spot by a
short supervised warm-up on demonstrations of two kinds: most write an answer at once, which is wrong more often than
not, some work it out digit by digit. So it starts as pretrained models do: able to, but seldom doing it, and not
reliably. From there on everything is JustRL's: GRPO with its constants, its strict verifier, +1 or -1 for the final
answer and nothing else.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastgrpo.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    RolloutConfig,
)
from fastgrpo.rewards import self_test_of, strict_boxed

config = Config(
    name="quickstart",
    steps=40,
    model=ModelConfig(path="{run_dir}/base/model"),
    data=DataConfig(
        train="{run_dir}/base/train.jsonl",
        held_out="{run_dir}/base/held_out.jsonl",
        suffix=" Answer in \\boxed{}.",
        max_prompt_tokens=32,
        prompts_per_step=128,
    ),
    rollout=RolloutConfig(max_response_tokens=48),
    optimizer=OptimizerConfig(learning_rate=2e-4, tokens_per_microbatch=8192),
    evaluation=EvaluationConfig(every_steps=5, max_problems=512),
    checkpoint=CheckpointConfig(every_steps=10),
)
reward = strict_boxed
self_test = self_test_of(reward)
source = "ours"
cost = "two minutes on two cores of a CPU"
ranks = 2  # cores

WORKED_OUT_SHARE = 0.25  # of the demonstrations
WARMUP_STEPS = 700
NUM_HELD_OUT, NUM_WARMUP = 512, 8192
VOCABULARY = 320


def prepare(config: Config, base: Path, say: Callable[[str], None]) -> None:
    """Makes data, tokenizer and base model once; a later run of the same folder finds them."""
    base.mkdir(parents=True, exist_ok=True)
    warmup, train, held_out = split_problems()
    write_rows(base / "held_out.jsonl", held_out)
    write_rows(base / "train.jsonl", train)
    if not (base / "model" / "config.json").exists():
        make_base_model(warmup, base / "model", WARMUP_STEPS, say)


Problem = tuple[int, int]


def split_problems() -> tuple[list[Problem], list[Problem], list[Problem]]:
    """(warm-up, training, held-out) problems, drawn from all sums of two two-digit numbers without overlap."""
    problems = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    random.Random(0).shuffle(problems)
    held_out, rest = problems[:NUM_HELD_OUT], problems[NUM_HELD_OUT:]
    return rest[: len(rest) // 2], rest[len(rest) // 2 :], held_out


def question(problem: Problem) -> str:
    return f"{problem[0]}+{problem[1]}=?"


def worked_out(problem: Problem) -> str:
    """Digit by digit with the carry: ``7+8+0=15 4+3+1=8 \\boxed{85}``."""
    (a, b), carry, steps = problem, 0, []
    for x, y in ((a % 10, b % 10), (a // 10, b // 10)):
        steps.append(f"{x}+{y}+{carry}={x + y + carry}")
        carry = (x + y + carry) // 10
    return " ".join(steps) + f" \\boxed{{{a + b}}}"


def guessed(problem: Problem, rng: random.Random) -> str:
    """An answer at once; half the time it has lost a ten, one in twelve is right."""
    return f"\\boxed{{{sum(problem) + rng.choice([-10] * 6 + [-11, -9, -1, 0, 1, 10])}}}"


def demonstrations(problems: list[Problem]) -> list[tuple[str, str]]:
    rng = random.Random(1)
    chosen = rng.choices(problems, k=NUM_WARMUP)
    return [(question(p), worked_out(p) if rng.random() < WORKED_OUT_SHARE else guessed(p, rng)) for p in chosen]


def write_rows(path: Path, problems: list[Problem]) -> None:
    """DAPO-Math-17k's schema."""
    rows = (
        {
            "data_source": "two_digit_sums",
            "prompt": [{"content": question(p), "role": "user"}],
            "ability": "MATH",
            "reward_model": {"ground_truth": str(sum(p)), "style": "rule"},
            "extra_info": {"index": f"{p[0]}+{p[1]}"},
        }
        for p in problems
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_tokenizer(texts: list[str]) -> Any:
    """Qwen2's pre-tokenizer over a vocabulary of its own. Another one would not survive: transformers' AutoTokenizer
    gives every model of this architecture Qwen2's."""
    from transformers import Qwen2Tokenizer

    special = ["<|user|>", "<|assistant|>"]
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(
        texts, VOCABULARY, new_special_tokens=special, show_progress=False
    )
    tokenizer.chat_template = (
        "<|user|>{{ messages[0]['content'] }}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    return tokenizer


def make_base_model(problems: list[Problem], folder: Path, warmup_steps: int, say: Callable[[str], None]) -> None:
    """Trains a tokenizer and a model on demonstrations of the problems and saves both as a Hugging Face folder."""
    import numpy as np
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    from fastgrpo.models.attention import choose_attention
    from fastgrpo.policy.policy import Policy
    from fastgrpo.policy.supervised_warmup import demonstration, supervised_warmup

    pairs = demonstrations(problems)
    tokenizer = make_tokenizer([q + config.data.suffix + r for q, r in pairs])
    end = tokenizer.eos_token_id
    shape = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        eos_token_id=end,
        pad_token_id=end,
        bos_token_id=None,
    )
    shape._attn_implementation = choose_attention("auto", torch.device("cpu"), torch.float32)
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(shape)
    say(f"quickstart: making a base model of {model.num_parameters():,} parameters in {folder}")

    def ids(text: str) -> np.ndarray:
        return np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)

    rows = [
        demonstration(ids(f"<|user|>{q}{config.data.suffix}<|assistant|>"), np.append(ids(r), np.int32(end)))
        for q, r in pairs
    ]

    def on_step(step: int, loss: float) -> None:
        if step % 100 == 0:
            say(f"quickstart: supervised warm-up, step {step} of {warmup_steps}, loss {loss:.3f}")

    supervised_warmup(
        Policy(model, 1.0, 4096),
        rows,
        steps=warmup_steps,
        sequences_per_step=64,
        learning_rate=3e-3,
        seed=0,
        on_step=on_step,
    )
    partial = folder.with_name("model.partial")
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=end)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(folder)
