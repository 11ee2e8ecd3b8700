"""A run's settings of the objective as the kernels take them; the formula is in `fastgrpo_kernels.objective`."""

from fastgrpo_kernels import Objective

from fastgrpo.config import ObjectiveConfig

_NO_UPPER_BOUND = 1e9  # the kernels bound a ratio by exp(20)


def objective_of(config: ObjectiveConfig) -> Objective:
    """The constants of the token objective. KL-Cov's penalty stands in the place of clipping."""
    clips = config.kl_cov == 0
    return Objective(
        surrogate=config.surrogate,
        ratio=config.ratio,
        clip_low=config.clip_low if clips else 1.0,
        clip_high=config.clip_high if clips else _NO_UPPER_BOUND,
        dual_clip=config.dual_clip if clips else 0.0,
        sapo_positive=config.sapo_positive,
        sapo_negative=config.sapo_negative,
        kl=config.kl,
        kl_coef=config.kl_coef,
        kl_cap=config.kl_cap,
        entropy_coef=config.entropy_coef,
        correction=config.correction,
        correction_low=config.correction_low,
        correction_high=config.correction_high,
    )


def chooses_tokens(config: ObjectiveConfig) -> bool:
    """Whether a token's part in the loss depends on the other tokens of the update."""
    return config.top_entropy < 1 or config.clip_cov > 0 or config.kl_cov > 0


def refuse_meaningless(config: ObjectiveConfig) -> None:
    """Raises ValueError, with the reason, for parts that have no meaning together."""
    surrogate, ratio = f"--objective.surrogate {config.surrogate}", f"--objective.ratio {config.ratio}"
    if config.ratio != "token" and config.surrogate != "clipped":
        raise ValueError(
            f"{surrogate} looks at every token's own ratio, and {ratio} gives a whole response one: take "
            f"--objective.ratio token, or --objective.surrogate clipped"
        )
    if config.dual_clip and (config.surrogate in ("cispo", "sapo") or config.ratio == "geometric_mean"):
        of = ratio if config.ratio == "geometric_mean" else surrogate
        raise ValueError(
            f"--objective.dual_clip {config.dual_clip:g} bounds a ratio that {of} has bounded already: take "
            f"--objective.dual_clip 0"
        )
    if config.correction != "none" and config.old_logprobs == "rollout":
        raise ValueError(
            f"--objective.correction {config.correction} weighs tokens by old over rollout probability, and with "
            f"--objective.old_logprobs rollout both are the sampler's, so that every weight is 1: take "
            f"--objective.old_logprobs recomputed, or --objective.correction none"
        )
    if chooses_tokens(config):
        _refuse_choice(config)


def _refuse_choice(config: ObjectiveConfig) -> None:
    given = {"top_entropy": config.top_entropy < 1, "clip_cov": config.clip_cov > 0, "kl_cov": config.kl_cov > 0}
    names = [f"--objective.{name} {getattr(config, name):g}" for name, is_given in given.items() if is_given]
    if config.ratio != "token":
        raise ValueError(
            f"{names[0]} chooses tokens, and --objective.ratio {config.ratio} gives a whole response one ratio: "
            f"take --objective.ratio token"
        )
    if config.old_logprobs == "rollout":
        raise ValueError(
            f"{names[0]} chooses tokens by what the policy made of them before the update, and with "
            f"--objective.old_logprobs rollout nothing is computed before: take --objective.old_logprobs recomputed"
        )
    if config.clip_cov and config.kl_cov:
        raise ValueError(f"{names[-2]} and {names[-1]} are two answers to one question: take one of them")
    if config.kl_cov and config.surrogate != "clipped":
        raise ValueError(
            f"{names[-1]} stands in the place of clipping, which --objective.surrogate {config.surrogate} has not: "
            f"take --objective.surrogate clipped"
        )
    if config.clip_cov and config.clip_cov_low >= config.clip_cov_high:
        raise ValueError(
            f"--objective.clip_cov_low must be below --objective.clip_cov_high, got {config.clip_cov_low:g} and "
            f"{config.clip_cov_high:g}"
        )
