"""Tokens of many samples end to end, as the model computes them."""

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class SharedPrompts:
    """Which of T packed tokens the model computes when a prompt stands once for all its responses.

    A prompt's token has the same hidden state in each of them: U <= T rows are enough everywhere but in attention.
    """

    select: Tensor  # [U] int64, the packed token that each row computes
    expand: Tensor  # [T] int64, the row that holds each packed token


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Samples laid end to end, without padding. ``target_ids[t]`` follows ``input_ids[t]`` in its sample."""

    input_ids: Tensor  # [T] int64
    target_ids: Tensor  # [T] int64
    position_ids: Tensor  # [T] int64, restarts at every sequence
    cu_seqlens: Tensor  # [S + 1] int32
    max_seqlen: int
    response_mask: Tensor  # [T] bool, true where the policy sampled target_ids[t]
    response_rows: Tensor  # [R] int64, where that is: found on the host, for a GPU would have to be waited for
    cu_responses: Tensor  # [S + 1] int32, where each sequence's response tokens begin among the R
    advantages: Tensor  # [T] float32
    rollout_logprobs: Tensor  # [T] float32, 0 outside response_mask
    shared: SharedPrompts | None = None
    old_logprobs: Tensor | None = None  # [R] float32 at the R response tokens; None stands for the current ones
    ref_logprobs: Tensor | None = None  # [R] float32, of the reference, where there is one
    token_weights: Tensor | None = None  # [R] float64, what each token's loss counts; None: 1
    log_ratio_penalties: Tensor | None = None  # [R] float64, weights of the sizes of log-ratios in the loss

    @property
    def num_loss_tokens(self) -> int:
        return len(self.response_rows)

    def at_responses(self, values: Tensor) -> Tensor:  # [T] -> [R]
        """What stands at the response tokens, in order."""
        return values.index_select(0, self.response_rows)

    def to(self, device: torch.device) -> Self:
        """The same on a device. To a GPU all tensors travel in one pinned copy, which the host does not wait for."""
        shared = self.shared
        tensors = {f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        inner = {} if shared is None else {"select": shared.select, "expand": shared.expand}
        move = _in_one_copy if device.type == "cuda" else _one_by_one
        moved = move([*tensors.values(), *inner.values()], device)
        if shared is not None:
            shared = SharedPrompts(*moved[len(tensors) :])
        there: dict[str, Any] = dict(zip(tensors, moved, strict=False))
        return replace(self, **there, shared=shared)


_ALIGNED_BYTES = 128  # where a tensor may begin: kernels read 16 bytes at once, a GPU's cache lines are 128


def _one_by_one(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    return [t.to(device) for t in tensors]


def _in_one_copy(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors of the CPU on the device, as views of one buffer: to autograd a write into one is a write into all."""
    assert all(t.device.type == "cpu" for t in tensors), "a batch travels once"
    starts = [0]
    for tensor in tensors:
        starts.append(starts[-1] + -(-tensor.nbytes // _ALIGNED_BYTES) * _ALIGNED_BYTES)
    host = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=True)
    for tensor, start in zip(tensors, starts, strict=False):
        _part(host, tensor, start).copy_(tensor)
    buffer = host.to(device, non_blocking=True)  # torch keeps the pinned memory until the copy is done
    return [_part(buffer, tensor, start) for tensor, start in zip(tensors, starts, strict=False)]


def _part(buffer: Tensor, like: Tensor, start: int) -> Tensor:
    """The bytes from ``start`` as a tensor of the shape and dtype of another."""
    return buffer[start : start + like.nbytes].view(like.dtype).view(like.shape)
