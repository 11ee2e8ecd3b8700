"""The five primitives that every op is made of, and what they take. A backend is a module that has all five.

`plain` is in torch, `native` in C++ for the CPU, `gpu` in Triton. `dispatch` chooses the one that runs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .objective import Objective


class LogitTransform(NamedTuple):
    """What the softmax sees of a bare logit: ``softcap * tanh(logit / softcap) / temperature``."""

    temperature: float | Tensor = 1.0  # or [R], in the dtype of the statistics
    softcap: float = 0.0  # 0: none

    def of(self, rows: slice | Tensor) -> "LogitTransform":
        """The transform of these rows of logits."""
        temperature = self.temperature[rows] if isinstance(self.temperature, Tensor) else self.temperature
        return LogitTransform(temperature, self.softcap)

    def inverse(self) -> tuple[float, Tensor | None]:
        """One over the temperature: a number, or one for each row."""
        if isinstance(self.temperature, Tensor):
            return 1.0, self.temperature.reciprocal()
        return 1.0 / self.temperature, None

    def encode(self) -> tuple[float, Tensor | None, float]:
        """The transform as a custom op's schema takes it: temperature, temperatures of rows, softcap."""
        if isinstance(self.temperature, Tensor):
            return 1.0, self.temperature, self.softcap
        return self.temperature, None, self.softcap

    @classmethod
    def decode(cls, temperature: float, temperatures: Tensor | None, softcap: float) -> "LogitTransform":
        """The inverse of `encode`."""
        return cls(temperature if temperatures is None else temperatures, softcap)


class RowStats(NamedTuple):
    """Statistics of each row of logits, in float32 (float64 for float64 logits)."""

    logprobs: Tensor  # [R] of the target
    lse: Tensor  # [R] log of the sum of exponentials
    entropy: Tensor | None  # [R] in nats

    @classmethod
    def empty(cls, rows: Tensor, entropy: bool) -> "RowStats":
        """Memory for the statistics of as many rows as this tensor has."""
        logprobs = rows.new_empty(len(rows), dtype=statistics_dtype(rows.dtype))
        return cls(logprobs, torch.empty_like(logprobs), torch.empty_like(logprobs) if entropy else None)

    def of(self, rows: slice) -> "RowStats":
        """The statistics of these rows."""
        return RowStats(self.logprobs[rows], self.lse[rows], None if self.entropy is None else self.entropy[rows])

    def write(self, rows: slice, stats: "RowStats") -> None:
        """Puts a chunk's statistics in their place."""
        for own, values in zip(self, stats, strict=True):
            if own is not None and values is not None:
                own[rows] = values

    def encode(self) -> tuple[Tensor, Tensor, Tensor]:
        """The statistics as a custom op returns them: the entropy [0] where it was not computed."""
        return self.logprobs, self.lse, self.logprobs.new_empty(0) if self.entropy is None else self.entropy


class ExponentialSums(NamedTuple):
    """Sums over the exponentials of each row of logits, of which each is relative to an offset of its row."""

    total: Tensor  # [R] float64, of exp(x - offset)
    weighted: Tensor | None  # [R] float64, of (x - offset) * exp(x - offset), for the entropy
    target: Tensor  # [R] float64, the target's x - offset

    @classmethod
    def zeros(cls, rows: Tensor, entropy: bool) -> "ExponentialSums":
        """The sums of as many rows as this tensor has, over no logits yet."""
        total = rows.new_zeros(len(rows), dtype=torch.float64)
        unknown = torch.full_like(total, torch.nan)  # until its column comes
        return cls(total, torch.zeros_like(total) if entropy else None, unknown)

    def stats(self, offsets: Tensor) -> RowStats:  # [R]
        """The rows' statistics, in the dtype of the offsets."""
        log_total = self.total.log()
        dtype = offsets.dtype
        entropy = None if self.weighted is None else (log_total - self.weighted / self.total).clamp(min=0.0).to(dtype)
        logprobs = (self.target - log_total).clamp(max=0.0)  # rounding alone is above it
        return RowStats(logprobs.to(dtype), (offsets + log_total).to(dtype), entropy)


class TokenFields(NamedTuple):
    """What the token objective takes of each token beside its logprob; floats of one dtype, all contiguous."""

    old_logprobs: Tensor | None  # [T]; None: the current ones
    advantages: Tensor  # [T]
    response_mask: Tensor | None = None  # [T] bool; None: every token
    ref_logprobs: Tensor | None = None  # [T]
    rollout_logprobs: Tensor | None = None  # [T]
    token_weights: Tensor | None = None  # [T]; None: 1
    cu_seqlens: Tensor | None = None  # [S + 1] int64; None where no token depends on others of its response

    def map(self, function: Callable[[str, Tensor], Tensor]) -> "TokenFields":
        """``function(name, values)`` of every field that has a value a token; `cu_seqlens` stays."""
        values: list[Any] = [
            values if values is None or name == "cu_seqlens" else function(name, values)
            for name, values in zip(self._fields, self, strict=True)
        ]
        return TokenFields(*values)

    def chunk(self, rows: slice) -> "TokenFields":
        """The fields of these tokens, which are all tokens where `cu_seqlens` is given."""
        return self.map(lambda _, values: values[rows])

    def select(self, rows: Tensor) -> "TokenFields":  # [R] int64, ascending
        """The fields as if there were these tokens alone."""
        selected = self.map(lambda _, values: values.index_select(0, rows))
        if self.cu_seqlens is None:
            return selected
        return selected._replace(cu_seqlens=torch.searchsorted(rows, self.cu_seqlens))  # selected tokens before each


class TokenGradient(NamedTuple):
    """Loss of the tokens and its derivatives, which are 0 outside the response mask whatever the fields hold there."""

    loss: Tensor  # []
    grad_logprobs: Tensor  # [T]
    grad_entropy: Tensor | None  # [T]; None where the objective has no entropy bonus
    ratio: Tensor  # [T]
    metrics: Tensor  # [len(METRICS)] float64


class DecodeStep(NamedTuple):
    """The next token of each sequence, and the cache of those before it, which gets its key and value."""

    query: Tensor  # [B, H, E]
    key: Tensor  # [B, K, E]
    value: Tensor  # [B, K, F]
    keys: Tensor  # [B, K, C, E]
    values: Tensor  # [B, K, C, F]
    lengths: Tensor  # [B] int64, tokens of each sequence in the cache


class Primitives(Protocol):
    """The functions of a backend."""

    def row_stats(
        self,
        logits: Tensor,  # [R, V], rows contiguous
        target_ids: Tensor,  # [R] int64
        transform: LogitTransform,
        entropy: bool,
    ) -> RowStats:
        """Statistics of the softmax of each row."""
        ...

    def row_gradient(
        self,
        logits: Tensor,  # [R, V], rows contiguous
        target_ids: Tensor,  # [R] int64
        transform: LogitTransform,
        stats: RowStats,
        grad_logprobs: Tensor,  # [R]
        grad_entropy: Tensor | None,  # [R]
        out: Tensor,  # [R, V], may be the logits; on CUDA also a narrower view of their memory
    ) -> None:
        """Writes the gradient of the bare logits to ``out``."""
        ...

    def exponentials(
        self,
        logits: Tensor,  # [R, C], columns of the vocabulary from ``first`` on; on a CPU a column's rows side by side
        first: int,
        target_ids: Tensor,  # [R] int64
        transform: LogitTransform,  # without a softcap
        offsets: Tensor,  # [R] in the dtype of the statistics
        sums: ExponentialSums,  # what these columns have is added; the target's is written where it is among them
        out: Tensor,  # [R, C], the logits, or on CUDA a narrower view of their memory
    ) -> None:
        """Writes exp(x - offset) to ``out``, where x is a logit as the softmax sees it."""
        ...

    def token_objective(
        self,
        logprobs: Tensor,  # [T]
        entropy: Tensor | None,  # [T]
        fields: TokenFields,
        num_loss_tokens: Tensor,  # []
        objective: Objective,
    ) -> TokenGradient:
        """The loss of `objective.py` and its derivatives."""
        ...

    def group_advantages(
        self,
        rewards: Tensor,  # [N] float32 or float64
        cu_groups: Tensor | None,  # [G + 1] int64; None: groups of group_size
        group_size: int,
        leave_one_out: bool,
        scale: bool,
        eps: float,
    ) -> Tensor:  # [N]
        """Each reward minus its group's baseline, over the group's standard deviation if ``scale``."""
        ...


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of logprobs and sums: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32
