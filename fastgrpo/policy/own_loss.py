"""What a recipe's own loss is given, and what it must give back."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastgrpo.algorithm import TokenLoss, Tokens
from fastgrpo.algorithm.scoring import RecipeError
from fastgrpo.models.packed_batch import PackedBatch

Gather = Callable[[list[str]], list[str]]
"""The items of all ranks on every rank, as `Ranks.gather` has them."""


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


class OwnLoss:
    """A recipe's function with checks of what it returns."""

    def __init__(self, function: TokenLoss, gather: Gather, is_alone: bool) -> None:
        self.function, self.gather, self.is_alone = function, gather, is_alone
        self.name = getattr(function, "__qualname__", type(function).__qualname__)
        self.is_first = True

    def __call__(self, tokens: Tokens) -> Tensor:  # [R]
        """The losses of these tokens.

        In the first micro-batch that has tokens on any rank all ranks hear of each other's problems, and raise
        RecipeError together; only there losses are looked at for NaN, for a GPU has to be waited for. Later one of
        several ranks raises RuntimeError by itself. The function is not called where there is no token: a rank, or all
        of them, may have nothing to learn from.
        """
        has_tokens = len(tokens.logprobs) > 0
        losses, problem = self._called(tokens) if has_tokens else (tokens.logprobs, "")
        if self.is_first:
            told = self.gather([problem] if has_tokens else [])
            self.is_first = not told
            if problems := [one for one in told if one]:
                raise RecipeError(problems[0])
        if problem:
            raise RecipeError(problem) if self.is_alone else RuntimeError(problem)
        return losses

    def _called(self, tokens: Tokens) -> tuple[Tensor, str]:
        """What the function makes of the tokens, and what is wrong with that, in words."""
        logprobs = tokens.logprobs
        try:
            found = self.function(tokens)
        except (Exception, SystemExit) as error:  # whatever the recipe's code raises
            return logprobs, f"{self.name}, the recipe's loss, failed: {type(error).__name__}: {error}"
        if not (got := _unlike(found, logprobs, must_be_finite=self.is_first)):
            return found, ""
        return logprobs, (
            f"{self.name}, the recipe's loss, must return a loss for each of {len(logprobs)} tokens, {logprobs.dtype} "
            f"on {logprobs.device} with a gradient to the logprobs or the entropy, got {got}"
        )


def _unlike(found: object, logprobs: Tensor, must_be_finite: bool) -> str:
    """What was got in the place of a loss for each logprob, in words; empty for such losses."""
    if not isinstance(found, Tensor):
        return type(found).__name__
    if found.shape != logprobs.shape or found.dtype != logprobs.dtype or found.device != logprobs.device:
        return f"{found.dtype} {list(found.shape)} on {found.device}"
    if not found.requires_grad:
        return "losses without a gradient"
    if must_be_finite and not bool(torch.isfinite(found).all()):
        return "some that are not finite"
    return ""
