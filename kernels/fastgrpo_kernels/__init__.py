"""Ops from hidden states and rewards to the GRPO gradient, without ``[T, V]`` logits. Needs torch alone."""

from fastgrpo_kernels.linear_logprobs import linear_logits, linear_logprobs

__all__ = ["linear_logits", "linear_logprobs"]
