"""A run's settings of the objective as the kernels take them; the formula is in `fastgrpo_kernels.objective`."""

from fastgrpo_kernels import Objective

from fastgrpo.config import ObjectiveConfig


def objective_of(config: ObjectiveConfig) -> Objective:
    """The constants of PPO's clipped ratio with DAPO's upper width and dual clip, as JustRL has it, and all others.

    Raises ValueError for a correction that would be 1 at every token.
    """
    if config.correction != "none" and config.old_logprobs == "rollout":
        raise ValueError(
            f"--objective.correction {config.correction} weighs tokens by old over rollout probability, and with "
            f"--objective.old_logprobs rollout both are the sampler's, so that every weight is 1: take "
            f"--objective.old_logprobs recomputed, or --objective.correction none"
        )
    return Objective(
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        dual_clip=config.dual_clip,
        kl=config.kl,
        kl_coef=config.kl_coef,
        kl_cap=config.kl_cap,
        entropy_coef=config.entropy_coef,
        correction=config.correction,
        correction_low=config.correction_low,
        correction_high=config.correction_high,
    )
