"""The token objective of a run, as the kernels take it; formula and variants are in `fastgrpo_kernels.objective`."""

from fastgrpo_kernels import Objective

from fastgrpo.config import ObjectiveConfig


def token_objective(config: ObjectiveConfig) -> Objective:
    """PPO's clip with DAPO's upper width and dual clip: JustRL's objective, and nothing else."""
    return Objective(clip_low=config.clip_low, clip_high=config.clip_high, dual_clip=config.dual_clip)
