"""Ops from hidden states and rewards to the GRPO gradient, without ``[T, V]`` logits. Needs torch, on a GPU Triton."""

from .decode_attention import decode_attention, has_decode_attention
from .group_advantages import group_advantages
from .grpo_loss import LossOutput, grpo_loss
from .linear_grpo import GrpoOutput, linear_grpo
from .linear_logprobs import linear_logits, linear_logprobs
from .logprobs_from_logits import logprobs_from_logits
from .objective import METRICS, Objective, cispo, dppo, gmpo, gspo, sapo

__version__ = "0.1.0"  # `fastgrpo` has and needs the same

__all__ = [
    "METRICS",
    "GrpoOutput",
    "LossOutput",
    "Objective",
    "cispo",
    "decode_attention",
    "dppo",
    "gmpo",
    "group_advantages",
    "grpo_loss",
    "gspo",
    "has_decode_attention",
    "linear_grpo",
    "linear_logits",
    "linear_logprobs",
    "logprobs_from_logits",
    "sapo",
]
