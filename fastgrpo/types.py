"""What travels between the parts of a step.

``Prompt -> (rollout) Group of Responses -> (rewards, advantages) -> (packing) PackedBatch -> (policy, objective)``
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One visit to one row of a data set.

    ``position`` counts visits: it is the prompt's place in the endless, seeded order of the data, and with the seed
    and the sample number it keys the sampling noise, so that two visits to a row draw different responses.
    """

    position: int
    row: int
    text: str
    prompt_ids: np.ndarray  # [num_prompt_tokens] int32
    answer: str


@dataclass(frozen=True, slots=True)
class Response:
    """What the sampler drew for one prompt, as token ids; text is derived from it and never fed back."""

    response_ids: np.ndarray  # [num_response_tokens] int32, the end token included if it was sampled
    rollout_logprobs: np.ndarray  # [num_response_tokens] float32, log-softmax(logits / temperature) of the sampled ids
    finish_reason: FinishReason
    policy_version: int  # trainer steps that made the weights which sampled its first token
    mean_entropy: float | None = None  # of the full vocabulary at the sampling temperature, nats a token; engines may
    # not know it
    version_changes: tuple[tuple[int, int], ...] = ()  # (place, policy_version): from this token on, newer weights

    def __len__(self) -> int:
        return len(self.response_ids)

    def token_versions(self) -> np.ndarray:  # [num_response_tokens] int64
        """The policy version of every token."""
        versions = np.full(len(self), self.policy_version)
        for place, version in self.version_changes:
            versions[place:] = version
        return versions


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt and the ``group_size`` responses that are compared with each other."""

    prompt: Prompt
    responses: list[Response]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How responses are drawn. The temperature is the one that the trainer's logprobs use too."""

    group_size: int
    max_response_tokens: int
    temperature: float = 1.0  # 0 takes the most probable token
    stop_token_ids: tuple[int, ...] = ()
    seed: int = 0
    top_p: float = 1.0  # draws from the smallest set of most probable tokens that has this share; training never cuts


@dataclass(frozen=True, slots=True)
class Request:
    """One response to be drawn. ``id`` is its owner's, unique among what an engine holds."""

    id: int
    prompt: Prompt
    sample: int  # place in its group; with the prompt's position and the seed it keys the noise
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Sequence:
    """One response with its prompt and what training needs to know of it: a row before packing."""

    prompt_ids: np.ndarray  # [num_prompt_tokens] int32
    response: Response
    advantage: float

    @property
    def num_input_tokens(self) -> int:
        """Tokens that the model reads: the last sampled token is only ever a target."""
        return len(self.prompt_ids) + len(self.response) - 1


@dataclass(frozen=True, slots=True)
class SharedPrompts:
    """Which of T packed tokens the model computes when a prompt stands once for all its responses.

    A prompt's token has the same hidden state in each of them: U <= T rows are enough everywhere but in attention.
    """

    select: Tensor  # [U] int64, the packed token that each row computes
    expand: Tensor  # [T] int64, the row that holds each packed token


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Sequences laid end to end, without padding. ``target_ids[t]`` follows ``input_ids[t]`` in its sequence."""

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
