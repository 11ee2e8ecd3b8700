"""Losses that have no meaning, or not with this recipe, are refused with the reason before anything is loaded."""

from fastgrpo.algorithm import Algorithm, TokenLoss, scores_differ
from fastgrpo.algorithm.advantages import NEED_NO_GROUP
from fastgrpo.algorithm.objective_settings import chooses_tokens, refuse_meaningless
from fastgrpo.config import PRESETS, Config

NOT_OF_ONE_S_OWN = ("surrogate", "ratio", "clip_low", "clip_high", "dual_clip", "sapo_positive", "sapo_negative")
"""The parts that a recipe's own loss takes the place of."""
NAMED_BY_THEIR_ADVANTAGES = ("rloo", "reinforce_pp", "reinforce_pp_baseline")


def validate_loss(config: Config, algorithm: Algorithm) -> None:
    """Raises ValueError with the settings that do not go together, and why."""
    refuse_meaningless(config.objective)
    _validate_advantages(config, algorithm)
    if config.objective.router_aux_coef and config.model.compile:
        raise ValueError(
            f"--objective.router_aux_coef {config.objective.router_aux_coef:g} reads what routers compute within a "
            f"layer, and compiled layers show nothing of it: leave --model.compile False"
        )
    if algorithm.loss is not None:
        _validate_own_loss(config, algorithm.loss)
    elif config.objective.kl_cov and config.objective.loss_path == "fused":
        raise ValueError(
            f"--objective.kl_cov {config.objective.kl_cov:g} adds a penalty that the LM head's fused loss does not "
            f"have: leave --objective.loss_path auto"
        )


def _validate_advantages(config: Config, algorithm: Algorithm) -> None:
    objective, group_size = config.objective, config.rollout.group_size
    chosen = objective.advantage != PRESETS[objective.loss].advantage or objective.loss in NAMED_BY_THEIR_ADVANTAGES
    if algorithm.advantages is not None and chosen:
        raise ValueError(
            f"--objective.advantage {objective.advantage} has no effect: the recipe's algorithm brings advantages of "
            f"its own. Leave one of them"
        )
    if group_size == 1 and algorithm.advantages is None and objective.advantage not in NEED_NO_GROUP:
        raise ValueError(
            f"--rollout.group_size must be at least 2, got 1: a response is compared with its group by "
            f"--objective.advantage {objective.advantage}; batch_whitened, of --objective.loss reinforce_pp, needs none"
        )
    rule = config.rollout.zero_signal_groups
    if group_size == 1 and rule != "keep" and algorithm.has_signal is scores_differ:
        raise ValueError(
            f"--rollout.group_size 1 has no group with right and wrong responses, and --rollout.zero_signal_groups "
            f"{rule} would leave nothing: take keep"
        )


def _validate_own_loss(config: Config, function: TokenLoss) -> None:
    objective, usual, name = config.objective, PRESETS["grpo"], getattr(function, "__qualname__", "its own")
    given = [p for p in NOT_OF_ONE_S_OWN if getattr(objective, p) != getattr(usual, p)]
    given = ["loss", *given] if objective.loss != "grpo" else given
    if given:
        raise ValueError(
            f"--objective.{given[0]} {getattr(objective, given[0])} has no effect: the recipe's algorithm brings a "
            f"loss of its own, {name}. Leave one of them"
        )
    if chooses_tokens(objective) or objective.correction != "none":
        part = "top_entropy, clip_cov or kl_cov" if chooses_tokens(objective) else f"correction {objective.correction}"
        raise ValueError(
            f"--objective.{part} changes what a token counts in a published loss, and the recipe brings its own, "
            f"{name}, which has to do that itself: leave it out"
        )
    if objective.loss_path in ("fused", "definition"):
        raise ValueError(
            f"--objective.loss_path {objective.loss_path} knows the published losses alone, and the recipe brings its "
            f"own, {name}, which needs logprobs first: leave auto, or take logprobs"
        )
