"""``--shrink``: any recipe as three short steps of a tiny random model, with everything else that it names; a step
more where its phases need one.

Model and problems are made on the spot: a random model of the recipe's architecture, whose vocabulary has whole answers
for tokens, so that it is right now and then; and differences of two numbers in the schema of the recipe's data.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastgrpo.algorithm import Algorithm, Phase
from fastgrpo.config import Config, with_settings
from fastgrpo.recipe.recipe import Recipe
from fastgrpo.recipe.validate import require_ranges

STEPS, MIN_PROMPTS, MAX_GROUP, MAX_RESPONSE_TOKENS, MAX_PROMPT_TOKENS = 3, 8, 8, 48, 768
NUM_PROBLEMS, NUM_ANSWERS = 64, 4


def shrink(recipe: Recipe) -> Recipe:
    """The recipe in small. What the command line says is applied to that."""
    config, algorithm = recipe.config, recipe.algorithm
    require_ranges(config)
    algorithm = replace(
        algorithm.scaled(MAX_RESPONSE_TOKENS / config.rollout.max_response_tokens, STEPS / config.steps),
        phases=tuple(_phase(n, p, config) for n, p in enumerate(algorithm.phases, start=1)),
    )
    return replace(recipe, config=_config(config, algorithm), algorithm=algorithm, prepare=_prepare(recipe))


def _config(config: Config, algorithm: Algorithm) -> Config:
    updates = config.optimizer.updates_per_step
    return with_settings(
        config,
        {
            "name": f"{config.name}_shrunk",
            "steps": max(STEPS, len(algorithm.phases) + 1),
            "shrink": True,
            "overwrite": True,  # of what an earlier smoke run left; --resume goes on all the same
            "model.path": "{run_dir}/base/model",
            "parallel.replicas": 1,
            "data.train": "{run_dir}/base/train.jsonl",
            "data.held_out": "",
            "data.levels": (),
            "data.max_prompt_tokens": MAX_PROMPT_TOKENS,
            "data.prompts_per_step": updates * -(-MIN_PROMPTS // updates),
            "model.attention": "auto",
            "rollout.engine": "builtin",
            "rollout.dtype": "auto",
            "rollout.kv_cache_gib": 0.0,
            "rollout.sleep_level": 0,
            "rollout.gpus": 0,
            "rollout.tensor_parallel": 1,
            "rollout.max_staleness": 0,
            "rollout.group_size": min(config.rollout.group_size, MAX_GROUP),
            "rollout.max_response_tokens": MAX_RESPONSE_TOKENS,
            "rollout.stop_token_ids": (),
            "rollout.max_rounds": min(config.rollout.max_rounds, 2),
            "optimizer.tokens_per_microbatch": 4 * (MAX_PROMPT_TOKENS + MAX_RESPONSE_TOKENS),
            "optimizer.warmup_steps": min(config.optimizer.warmup_steps, 1),
            "checkpoint.every_steps": 0,
        },
    )


def _phase(first_step: int, phase: Phase, config: Config) -> Phase:
    """Phases follow each other step by step; what is long in them is as much longer than in the first one."""
    of_its_own = ("data.train", "data.prompts_per_step", "optimizer.updates_per_step")
    settings = {n: v for n, v in phase.settings.items() if n not in of_its_own}
    longest = config.rollout.max_response_tokens
    if tokens := settings.get("rollout.max_response_tokens"):
        settings["rollout.max_response_tokens"] = min(round(MAX_RESPONSE_TOKENS * tokens / longest), 96)
    if size := settings.get("rollout.group_size"):
        settings["rollout.group_size"] = min(max(2, MAX_GROUP * size // config.rollout.group_size), 2 * MAX_GROUP)
    return Phase(first_step, settings)


def _prepare(recipe: Recipe) -> Callable[[Config, Path, Callable[[str], None]], None]:
    def prepare(config: Config, base: Path, say: Callable[[str], None]) -> None:
        base.mkdir(parents=True, exist_ok=True)
        try:
            lines = [json.dumps(recipe.row(*problem)) + "\n" for problem in problems()]
        except Exception as error:  # whatever the recipe's code raises
            raise ValueError(
                f"the recipe's row must make a JSON object of (problem, answer, solution): {type(error).__name__}: "
                f"{error}"
            ) from error
        (base / "train.jsonl").write_text("".join(lines))
        if not (base / "model" / "config.json").exists():
            say(f"shrunk: a random {config.model.family} model in {base}")
            save_random_model(config.model.family, base / "model")

    return prepare


def problems() -> list[tuple[str, str, str]]:
    """(problem, answer, solution) triples; the answers are 0 to 3."""
    found = []
    for n in range(NUM_PROBLEMS):
        small, difference = 11 + n, n % NUM_ANSWERS
        large = small + difference
        solution = f"Adding {difference} to {small} makes {large}. So the answer is \\boxed{{{difference}}}."
        found.append((f"What is {large}-{small}?", str(difference), solution))
    return found


def save_random_model(family: str, folder: Path) -> None:
    """A Hugging Face folder of a model with two layers and of its tokenizer; equal for equal families."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    tokenizer = make_tokenizer()
    end = tokenizer.eos_token_id
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        eos_token_id=end,
        pad_token_id=end,
        bos_token_id=None,
        **({"sliding_window": None} if family == "mistral" else {}),
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=end)
    partial = folder.with_name("model.partial")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(folder)


def make_tokenizer() -> Any:
    """One token a character, and one for each whole answer in each form that a verifier looks for."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    boxes = [f"{before}\\boxed{{{n}}}" for before in ("", " ", "\n", "=") for n in range(NUM_ANSWERS)]
    lines = [f"\nAnswer: {n}\n" for n in range(NUM_ANSWERS)]
    words = [*boxes, *lines, "</think>"]
    characters = [chr(c) for c in range(32, 127)] + ["\n"]
    vocabulary = {token: n for n, token in enumerate(["<unknown>", "<end>", *words, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    pattern = "|".join(_escaped(word) for word in sorted(words, key=len, reverse=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"{pattern}|[\\s\\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unknown>")
    fast.chat_template = "user: {{ messages[0]['content'] }}\n{% if add_generation_prompt %}assistant: {% endif %}"
    return fast


def _escaped(word: str) -> str:
    """For the tokenizers' regular expressions, in which a newline stands for itself."""
    return "".join("\\" + c if c in "\\{}.^$*+?()[]|/" else c for c in word)
