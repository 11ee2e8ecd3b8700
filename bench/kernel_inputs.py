"""The inputs of the kernels' subjects: the same numbers for the same shape, dtype and device."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

NUM_RESPONSES = 8
GROUP_SIZE = 8


@dataclass(frozen=True)
class HeadInputs:
    """A packed micro-batch before the LM head: responses of equal length and no prompts.

    So the padding that some peers need costs them nothing.
    """

    hidden: Tensor  # [T, D], requires a gradient
    weight: Tensor  # [V, D], requires a gradient
    target_ids: Tensor  # [T] int64
    old_logprobs: Tensor  # [T]
    response_advantages: Tensor  # [S]
    advantages: Tensor  # [T], the same for each token
    upstream: Tensor  # [T] gradient of the logprobs, for subjects whose result they are

    @classmethod
    def random(
        cls, num_tokens: int, width: int, vocabulary: int, dtype: torch.dtype, device: torch.device
    ) -> "HeadInputs":
        generator = torch.Generator(device).manual_seed(0)
        hidden = torch.randn(num_tokens, width, device=device, generator=generator).to(dtype)
        weight = (torch.randn(vocabulary, width, device=device, generator=generator) * 2 * width**-0.5).to(dtype)
        target_ids = torch.randint(vocabulary, (num_tokens,), device=device, generator=generator)
        by_response = torch.linspace(-1.5, 1.5, NUM_RESPONSES, device=device)
        return cls(
            hidden=hidden.requires_grad_(),
            weight=weight.requires_grad_(),
            target_ids=target_ids,
            old_logprobs=_logprobs(hidden, weight, target_ids) - _log_ratios(num_tokens, device, generator),
            response_advantages=by_response,
            advantages=by_response.repeat_interleave(num_tokens // NUM_RESPONSES),
            upstream=torch.randn(num_tokens, device=device, generator=generator) / num_tokens,
        )

    @property
    def num_tokens(self) -> int:
        return len(self.target_ids)

    def exact(self) -> "HeadInputs":
        """These inputs in float64."""
        hidden, weight = (t.detach().double().requires_grad_() for t in (self.hidden, self.weight))
        names = ("old_logprobs", "response_advantages", "advantages", "upstream")
        return replace(self, hidden=hidden, weight=weight, **{name: getattr(self, name).double() for name in names})

    def by_response(self, values: Tensor) -> Tensor:  # [T, ...] -> [S, T / S, ...]
        return values.view(NUM_RESPONSES, -1, *values.shape[1:])


def _logprobs(hidden: Tensor, weight: Tensor, target_ids: Tensor) -> Tensor:  # [T] float32
    """The logprobs by the definition, a few rows at a time."""
    parts: Iterable[tuple[Tensor, Tensor]] = zip(hidden.detach().split(64), target_ids.split(64), strict=True)
    weight = weight.detach()
    return torch.cat([torch.log_softmax((h @ weight.T).float(), -1).gather(1, i[:, None])[:, 0] for h, i in parts])


def _log_ratios(num_tokens: int, device: torch.device, generator: torch.Generator) -> Tensor:  # [T]
    """Small log-ratios, for one token in ten beyond the clip; none is so near to it that rounding decides."""
    small, far = (torch.rand(num_tokens, device=device, generator=generator) for _ in range(2))
    return torch.where(far < 0.1, torch.where(far < 0.05, -0.6, 0.6), 0.1 * small - 0.05)


@dataclass(frozen=True)
class TokenInputs:
    """Given logprobs of a packed micro-batch in which one token in eight belongs to a prompt."""

    logprobs: Tensor  # [T], requires a gradient
    old_logprobs: Tensor  # [T]
    advantages: Tensor  # [T]
    response_mask: Tensor  # [T] bool
    num_loss_tokens: int

    @classmethod
    def random(cls, num_tokens: int, device: torch.device, seed: int = 0) -> "TokenInputs":
        generator = torch.Generator(device).manual_seed(seed)
        logprobs = -torch.rand(num_tokens, device=device, generator=generator)
        advantages = torch.randn(num_tokens, device=device, generator=generator)
        mask = torch.arange(num_tokens, device=device) % 8 != 0
        ratios = _log_ratios(num_tokens, device, generator)
        num_loss_tokens = num_tokens - -(-num_tokens // 8)
        return cls(logprobs.requires_grad_(), logprobs.detach() - ratios, advantages, mask, num_loss_tokens)

    def exact(self) -> "TokenInputs":
        return replace(
            self,
            logprobs=self.logprobs.detach().double().requires_grad_(),
            old_logprobs=self.old_logprobs.double(),
            advantages=self.advantages.double(),
        )


@dataclass(frozen=True)
class RewardInputs:
    rewards: Tensor  # [N]
    cu_groups: Tensor  # [N / GROUP_SIZE + 1] int64: the same groups, given as ragged ones

    @classmethod
    def random(cls, num_rewards: int, device: torch.device, seed: int = 0) -> "RewardInputs":
        generator = torch.Generator(device).manual_seed(seed)
        rewards = torch.randn(num_rewards, device=device, generator=generator)
        return cls(rewards, torch.arange(0, num_rewards + 1, GROUP_SIZE, device=device))


@dataclass(frozen=True)
class LogitInputs:
    """A chunk of logits, which a run may overwrite: `restore` writes them again."""

    logits: Tensor  # [R, V], requires a gradient
    original: Tensor  # [R, V]
    target_ids: Tensor  # [R] int64
    upstream: Tensor  # [R] gradient of the logprobs

    @classmethod
    def random(cls, num_rows: int, vocabulary: int, device: torch.device) -> "LogitInputs":
        generator = torch.Generator(device).manual_seed(0)
        original = 2 * torch.randn(num_rows, vocabulary, device=device, generator=generator)
        target_ids = torch.randint(vocabulary, (num_rows,), device=device, generator=generator)
        upstream = torch.randn(num_rows, device=device, generator=generator)
        return cls(original.clone().requires_grad_(), original, target_ids, upstream)

    def exact(self) -> "LogitInputs":
        logits = self.original.double().requires_grad_()
        return replace(self, logits=logits, upstream=self.upstream.double())

    def restore(self) -> None:
        self.logits.detach().copy_(self.original)
