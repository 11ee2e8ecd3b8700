"""What cannot run is refused here, with the numbers, before anything is loaded."""

import json
import math
import operator
import re
from typing import Any

from fastgrpo.algorithm import Algorithm
from fastgrpo.config import RULES, Config, flatten
from fastgrpo.recipe.validate_loss import validate_loss

PLAIN = Algorithm()
_BOUNDS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}
_LARGEST = {int: 2**31 - 1, float: 1e15}
"""Of numbers without an upper bound of their own: beyond these, what computes with them overflows."""
_MOST_RESPONSES = 2**24
"""Of a step."""


def require_ranges(config: Config) -> None:
    """Raises ValueError for a number that is not finite, or not within the bounds that its field in Config has, and for
    text that no file can hold."""
    for name, value in flatten(config).items():
        if isinstance(value, str) and not value.isascii() and value != value.encode(errors="replace").decode():
            raise ValueError(f"--{name} must be text that UTF-8 can write, got {value!r}")
        numbers, rules = value if isinstance(value, list) else [value], RULES[name]
        bounds = {bound: rules[bound] for bound in _BOUNDS if bound in rules}
        if any(isinstance(n, float) and not math.isfinite(n) for n in numbers):
            raise ValueError(f"--{name} must be a finite number, got {value!r}")
        if not all(_BOUNDS[bound](n, limit) for bound, limit in bounds.items() for n in numbers):
            wanted = " and ".join(f"{bound.replace('_', ' ')} {limit:,}" for bound, limit in bounds.items())
            each = " each" if isinstance(value, list) else ""
            because = f": {rules['because']}" if "because" in rules else ""
            raise ValueError(f"--{name} must be {wanted}{each}, got {value!r}{because}")
        if "at_most" not in rules and "below" not in rules:
            _require_not_beyond(name, numbers)


def _require_not_beyond(name: str, numbers: list[Any]) -> None:
    for number in numbers:
        if type(number) in _LARGEST and abs(number) > (most := _LARGEST[type(number)]):
            raise ValueError(f"--{name} must be at most {most:,}, got {number!r}")


def validate(config: Config, num_ranks: int, algorithm: Algorithm = PLAIN) -> None:
    """Refuses what cannot run, before anything is loaded. Raises ValueError with the range or the numbers."""
    require_ranges(config)
    values = flatten(config)

    def require(name: str, ok: bool, wanted: str) -> None:
        if not ok:
            raise ValueError(f"--{name} must be {wanted}, got {values[name]!r}")

    require("name", re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", config.name) is not None, "one folder's name")
    require("reward.correct", config.reward.correct > config.reward.wrong, "above --reward.wrong")
    unformatted = config.reward.unformatted
    require("reward.unformatted", unformatted is None or unformatted < config.reward.correct, "below --reward.correct")
    require("objective.dual_clip", config.objective.dual_clip == 0 or config.objective.dual_clip > 1, "above 1, or 0")
    require("data.template", not config.data.template or config.data.template.count("{problem}") == 1,
            "empty, or text with {problem} in it once")  # fmt: skip
    validate_loss(config, algorithm)
    _validate_arithmetic(config, num_ranks)
    _validate_rollouts(config, num_ranks, has_own_loss=algorithm.loss is not None)


def _validate_arithmetic(config: Config, num_ranks: int) -> None:
    prompts, updates = config.data.prompts_per_step, config.optimizer.updates_per_step
    if (responses := prompts * config.rollout.group_size) > _MOST_RESPONSES:
        raise ValueError(
            f"--data.prompts_per_step {prompts} with --rollout.group_size {config.rollout.group_size} make "
            f"{responses:,} responses a step, more than {_MOST_RESPONSES:,}: lower one of them."
        )
    if prompts % updates:
        more = prompts - prompts % updates + updates
        raise ValueError(
            f"--data.prompts_per_step {prompts} cannot be split into --optimizer.updates_per_step {updates} equal "
            f"updates: {prompts} / {updates} = {prompts / updates:g}. Take {more} prompts, or a number of updates that "
            f"divides {prompts}."
        )
    longest = config.data.max_prompt_tokens + config.rollout.max_response_tokens
    if config.optimizer.tokens_per_microbatch < longest:
        raise ValueError(
            f"--optimizer.tokens_per_microbatch {config.optimizer.tokens_per_microbatch} cannot hold one longest "
            f"sequence of {config.data.max_prompt_tokens} prompt + {config.rollout.max_response_tokens} response "
            f"= {longest} tokens. Raise it, or lower --rollout.max_response_tokens."
        )
    if num_ranks % config.parallel.replicas:
        raise ValueError(
            f"--parallel.replicas {config.parallel.replicas} does not divide the {num_ranks} ranks of this launch."
        )


def _validate_rollouts(config: Config, num_trainers: int, has_own_loss: bool) -> None:
    rollout = config.rollout
    if rollout.servers and rollout.gpus:
        raise ValueError("--rollout.servers and --rollout.gpus both say who samples: leave one of them")
    if rollout.samples_apart and rollout.engine != "vllm":
        raise ValueError(
            f"engines outside of the trainer ranks are vLLM servers: set --rollout.engine vllm, not {rollout.engine}"
        )
    if rollout.max_staleness > 0 and not rollout.samples_apart:
        raise ValueError(
            f"--rollout.max_staleness {rollout.max_staleness} needs engines that sample while the trainer trains: give "
            f"them ranks of their own with --rollout.gpus, or name --rollout.servers, or take staleness 0"
        )
    if rollout.max_staleness > 1 and config.objective.correction == "none" and not has_own_loss:
        recomputed = " with --objective.old_logprobs recomputed" if config.objective.old_logprobs == "rollout" else ""
        raise ValueError(
            f"--rollout.max_staleness {rollout.max_staleness} with a plain objective trains on tokens of other weights "
            f"as if they were the policy's own (AReaL, arXiv 2505.24298, table 3: 42.0 falls to 23.3 on AIME24): add "
            f"--objective.correction truncate{recomputed}, or take staleness 1 at most"
        )
    if rollout.oversample > 1 and rollout.max_staleness > 0:
        raise ValueError(
            "--rollout.oversample cuts the tail that a step waits for; with --rollout.max_staleness above 0 a step "
            "does not wait for it: leave one of them"
        )
    if not rollout.samples_apart and num_trainers % rollout.tensor_parallel:
        raise ValueError(
            f"--rollout.tensor_parallel {rollout.tensor_parallel} does not divide the {num_trainers} ranks that share "
            f"engines"
        )
    if rollout.gpus % rollout.tensor_parallel:
        raise ValueError(
            f"--rollout.tensor_parallel {rollout.tensor_parallel} does not divide --rollout.gpus {rollout.gpus}"
        )


def validate_phases(algorithm: Algorithm, config: Config, num_ranks: int) -> None:
    """Refuses what a later phase could not run with, before the first begins. Raises ValueError naming the phase."""
    json.dumps(algorithm.describe())  # what a run folder will hold of it
    for number, later in enumerate(algorithm.configs(config)[1:], start=1):
        try:
            validate(later, num_ranks, algorithm)
        except ValueError as error:
            first_step = algorithm.phases[number - 1].first_step
            raise ValueError(f"the recipe's phase from step {first_step} on: {error}") from error
    if algorithm.phases and config.rollout.max_staleness > 0:
        raise ValueError(
            f"this recipe changes settings in the run, and with --rollout.max_staleness "
            f"{config.rollout.max_staleness} steps overlap: take staleness 0"
        )
    if algorithm.reference_reset and not algorithm.needs_reference(config):
        raise ValueError("this recipe resets a reference that --objective.kl_coef 0 does not load: give a coefficient")


def arithmetic(config: Config, num_ranks: int) -> dict[str, str]:
    """The derived numbers of a step, as the dry run prints them."""
    group, updates = config.rollout.group_size, config.optimizer.updates_per_step
    prompts, longest_response = config.prompts_per_update, config.rollout.max_response_tokens
    shards = num_ranks // config.parallel.replicas
    return {
        "ranks": f"{num_ranks} ({config.parallel.replicas} x {shards} shards)",
        "prompts per step": f"{config.data.prompts_per_step}",
        "responses per step": f"{config.data.prompts_per_step} prompts x {group} = {config.responses_per_step}",
        "updates per step": f"{updates}, each on {prompts} prompts x {group} = {prompts * group} responses",
        "tokens a micro-batch": f"at most {config.optimizer.tokens_per_microbatch} on each rank",
        "longest sequence": f"{config.data.max_prompt_tokens} prompt + {longest_response} response tokens",
        "tokens a step": f"at most {config.responses_per_step * longest_response:,} sampled",
        "updates in all": f"{config.steps} steps x {updates} = {config.steps * updates:,}",
    }
