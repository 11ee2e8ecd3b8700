"""Ops from hidden states and rewards to the GRPO gradient, without ``[T, V]`` logits. Needs torch, on a GPU Triton."""

from fastgrpo_kernels.group_advantages import group_advantages
from fastgrpo_kernels.grpo_loss import LossOutput, grpo_loss
from fastgrpo_kernels.linear_grpo import GrpoOutput, linear_grpo
from fastgrpo_kernels.linear_logprobs import linear_logits, linear_logprobs
from fastgrpo_kernels.logprobs_from_logits import logprobs_from_logits
from fastgrpo_kernels.objective import METRICS, Objective, cispo, dppo, gmpo, gspo, sapo

__all__ = [
    "METRICS",
    "GrpoOutput",
    "LossOutput",
    "Objective",
    "cispo",
    "dppo",
    "gmpo",
    "group_advantages",
    "grpo_loss",
    "gspo",
    "linear_grpo",
    "linear_logits",
    "linear_logprobs",
    "logprobs_from_logits",
    "sapo",
]
