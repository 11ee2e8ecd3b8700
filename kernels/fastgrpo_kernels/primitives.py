"""The four primitives that every op is made of, and what they take. A backend is a module that has them all.

`plain` is in torch, `native` in C++ for the CPU, `gpu` in Triton; `dispatch` says which one runs.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fastgrpo_kernels.objective import Objective


class LogitTransform(NamedTuple):
    """From a bare logit to the one that the softmax sees: ``softcap * tanh(logit / softcap) / temperature``."""

    temperature: float | Tensor = 1.0  # or [R], in the dtype of the statistics
    softcap: float = 0.0  # 0: none

    def of(self, rows: slice) -> "LogitTransform":
        temperature = self.temperature[rows] if isinstance(self.temperature, Tensor) else self.temperature
        return LogitTransform(temperature, self.softcap)

    def inverse(self) -> tuple[float, Tensor | None]:
        """One over the temperature: a number, or one for each row."""
        if isinstance(self.temperature, Tensor):
            return 1.0, self.temperature.reciprocal()
        return 1.0 / self.temperature, None


class RowStats(NamedTuple):
    """What the row pass learns of each row of logits, in float32 (float64 for float64 logits)."""

    logprobs: Tensor  # [R] of the target
    lse: Tensor  # [R] log of the sum of exponentials
    entropy: Tensor | None  # [R] in nats


@dataclass(frozen=True)
class Tokens:
    """What the token objective needs of each token; float32 or float64, all alike, contiguous."""

    logprobs: Tensor  # [T]
    old_logprobs: Tensor | None  # [T]; None: the current ones
    advantages: Tensor  # [T]
    response_mask: Tensor | None = None  # [T] bool; None: every token
    ref_logprobs: Tensor | None = None  # [T]
    rollout_logprobs: Tensor | None = None  # [T]
    token_weights: Tensor | None = None  # [T]; None: 1
    entropy: Tensor | None = None  # [T]
    cu_seqlens: Tensor | None = None  # [S + 1] int64


class TokenGradient(NamedTuple):
    """Loss of the tokens, and its derivatives; 0 outside the mask whatever stands there."""

    loss: Tensor  # []
    grad_logprobs: Tensor  # [T]
    grad_entropy: Tensor | None  # [T]; None where the objective has no entropy bonus
    ratio: Tensor  # [T]
    metrics: Tensor  # [len(METRICS)] float64


class Primitives(Protocol):
    def row_stats(
        self,
        logits: Tensor,  # [R, V], rows contiguous
        target_ids: Tensor,  # [R] int64
        transform: LogitTransform,
        entropy: bool,
    ) -> RowStats: ...

    def row_gradient(
        self,
        logits: Tensor,  # [R, V], rows contiguous
        target_ids: Tensor,  # [R] int64
        transform: LogitTransform,
        stats: RowStats,
        grad_logprobs: Tensor,  # [R]
        grad_entropy: Tensor | None,  # [R]
        out: Tensor,  # [R, V], may be the logits; on CUDA also a narrower view of their memory
    ) -> None: ...

    def token_objective(self, tokens: Tokens, num_loss_tokens: Tensor, objective: Objective) -> TokenGradient: ...

    def group_advantages(
        self,
        rewards: Tensor,  # [N] float32 or float64
        cu_groups: Tensor | None,  # [G + 1] int64; None: groups of group_size
        group_size: int,
        leave_one_out: bool,
        scale: bool,
        eps: float,
    ) -> Tensor: ...


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """What logprobs and sums are kept in: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32
