"""What a recipe's own loss is given, and what it must give back."""

import torch
from torch import Tensor

from fastgrpo.algorithm import TokenLoss, Tokens
from fastgrpo.algorithm.scoring import RecipeError
from fastgrpo.models.packed_batch import PackedBatch


def tokens_of(batch: PackedBatch, logprobs: Tensor, entropy: Tensor) -> Tokens:
    """The response tokens of a micro-batch, all in the dtype of the logprobs."""
    old, ref, dtype = batch.old_logprobs, batch.ref_logprobs, logprobs.dtype
    return Tokens(
        logprobs=logprobs,
        entropy=entropy,
        old_logprobs=logprobs.detach() if old is None else old.to(dtype),
        rollout_logprobs=batch.at_responses(batch.rollout_logprobs).to(dtype),
        ref_logprobs=None if ref is None else ref.to(dtype),
        advantages=batch.at_responses(batch.advantages).to(dtype),
        cu_seqlens=batch.cu_responses,
    )


def losses_of_recipe(function: TokenLoss, tokens: Tokens, must_be_finite: bool) -> Tensor:  # [R]
    """The function's losses. Raises RecipeError, which names it, for anything but one number a token with a gradient.

    It is not called where there is no token: a rank may have nothing to learn from.
    """
    logprobs = tokens.logprobs
    if len(logprobs) == 0:
        return logprobs
    name = getattr(function, "__qualname__", type(function).__qualname__)
    try:
        found = function(tokens)
    except (Exception, SystemExit) as error:  # whatever the recipe's code raises
        raise RecipeError(f"{name}, the recipe's loss, failed: {type(error).__name__}: {error}") from error
    if problem := _problem(found, logprobs, must_be_finite):
        raise RecipeError(
            f"{name}, the recipe's loss, must return a loss for each of {len(logprobs)} tokens, {logprobs.dtype} on "
            f"{logprobs.device} with a gradient to the logprobs or the entropy, got {problem}"
        )
    return found


def _problem(found: object, logprobs: Tensor, must_be_finite: bool) -> str:
    """What is wrong with the losses, in words; empty if nothing is."""
    if not isinstance(found, Tensor):
        return type(found).__name__
    if found.shape != logprobs.shape or found.dtype != logprobs.dtype or found.device != logprobs.device:
        return f"{found.dtype} {list(found.shape)} on {found.device}"
    if not found.requires_grad:
        return "losses without a gradient"
    if must_be_finite and not bool(torch.isfinite(found).all()):
        return "some that are not finite"
    return ""
