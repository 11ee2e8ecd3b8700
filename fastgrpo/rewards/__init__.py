"""Responses -> right or wrong. A verifier is a pure function (response text, answer) -> bool: ``strict_boxed`` is
JustRL's, a recipe may bring its own. ``VerifierPool`` runs it in processes of its own, so that a response on which it
hangs, dies or eats all memory costs one verdict and never the run. Nothing here imports torch."""

from fastgrpo.rewards.pool import SELF_TEST, Verdict, VerifierPool
from fastgrpo.rewards.strict_boxed import strict_boxed

__all__ = ["SELF_TEST", "Verdict", "VerifierPool", "strict_boxed"]
