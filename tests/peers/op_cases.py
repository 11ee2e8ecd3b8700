"""Off-policy data on which every branch of the objective occurs: padded for the peers, with NaN in it for us."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import inf, nan

import torch
from fastgrpo_kernels import LossOutput, Objective, grpo_loss
from torch import Tensor

CLIP = {"clip_low": 0.2, "clip_high": 0.28}
DUAL_CLIP = 3.0
RATIO_CAP = 1.9
SAMPLER = {"correction_low": 0.5, "correction_high": 2.0}

MIXED = (0.1, 0.5, 0.78, 0.82, 0.95, 1.05, 1.25, 1.31, 2.0, 2.9, 3.1, 9.0)
LOW, HIGH, FAR = (0.3, 0.5, 0.7, 0.78, 0.82), (1.25, 1.31, 1.8, 2.5), (2.9, 3.1, 6.0, 40.0)
ROLLOUT_MIXED = (0.2, 0.48, 0.52, 0.9, 1.1, 1.9, 2.1, 5.0)
ROLLOUT_LOW, ROLLOUT_HIGH, ROLLOUT_EVEN = (0.2, 0.4, 0.52), (1.9, 2.1, 4.0), (0.9, 1.1, 0.48, 2.1)
ROWS = (  # length, advantage, ratios to the old policy, ratios of the old to the rollout policy
    (12, 1.3, MIXED, ROLLOUT_MIXED),
    (3, 0.4, HIGH, ROLLOUT_HIGH),
    (7, -0.7, LOW, ROLLOUT_LOW),
    (1, 0.0, MIXED, ROLLOUT_MIXED),
    (12, -1.1, MIXED, ROLLOUT_MIXED),
    (0, 0.9, MIXED, ROLLOUT_MIXED),
    (9, -2.0, FAR, ROLLOUT_MIXED),
    (10, 1.2, LOW, ROLLOUT_EVEN),
)


@dataclass(frozen=True)
class OffPolicy:
    """Values that float32 holds exactly, in float64. Two responses have a hole, one has no token of the policy."""

    mask: Tensor  # [N, L] bool
    logprobs: Tensor  # [N, L]
    old_logprobs: Tensor  # [N, L]
    ref_logprobs: Tensor  # [N, L]
    rollout_logprobs: Tensor  # [N, L]
    entropy: Tensor  # [N, L]
    advantages: Tensor  # [N]

    @cached_property
    def lengths(self) -> Tensor:  # [N]
        return self.mask.sum(1)

    @cached_property
    def num_tokens(self) -> int:
        return int(self.mask.sum())

    @cached_property
    def cu_seqlens(self) -> Tensor:  # [N + 1]
        rows, columns = self.mask.shape
        return torch.arange(rows + 1) * columns

    def of_tokens(self, values: Tensor) -> Tensor:  # [N] -> [N, L]
        return values[:, None].expand(self.mask.shape)

    def ratio(self, sequence: bool = False) -> Tensor:  # [N, L]
        return ratio(self.logprobs - self.old_logprobs, self.mask, sequence)

    def rollout_ratio(self, sequence: bool = False) -> Tensor:  # [N, L]
        return ratio(self.old_logprobs - self.rollout_logprobs, self.mask, sequence)


def ratio(log_ratio: Tensor, mask: Tensor, sequence: bool) -> Tensor:  # [N, L]
    """Of every token, or the geometric mean over its response."""
    if sequence:
        mean = (log_ratio * mask).sum(1) / mask.sum(1).clamp(min=1)
        return mean.exp()[:, None].expand(mask.shape)
    return log_ratio.exp()


def make_case() -> OffPolicy:
    generator = torch.Generator().manual_seed(7)
    columns = max(length for length, *_ in ROWS)
    shape = len(ROWS), columns

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64) * (high - low) + low

    def log_of(choices: tuple[tuple[float, ...], ...]) -> Tensor:
        """Each row walks through its choices, which keep their distance from every bound."""
        rows = [torch.tensor(row, dtype=torch.float64).log().repeat(columns)[:columns] for row in choices]
        return torch.stack(rows) + uniform(-0.005, 0.005)

    mask = torch.arange(columns) < torch.tensor([length for length, *_ in ROWS])[:, None]
    mask[0, 5:7] = mask[4, 3] = False
    old = uniform(-4, -0.5)
    logprobs = old + log_of(tuple(row[2] for row in ROWS))
    fields = logprobs, old, logprobs - uniform(-4, 4), old - log_of(tuple(row[3] for row in ROWS)), uniform(0.1, 3)
    advantages = torch.tensor([row[1] for row in ROWS], dtype=torch.float64)
    return OffPolicy(mask, *(f.float().double() for f in fields), advantages.float().double())


def assert_every_branch_occurs(case: OffPolicy, sequence: bool = False) -> None:
    """Clipped below, above and by dual clip, left alone with either sign, corrected in either direction."""
    ratio, advantages, mask = case.ratio(sequence), case.of_tokens(case.advantages), case.mask
    low, high = 1 - CLIP["clip_low"], 1 + CLIP["clip_high"]
    inside = (ratio > low) & (ratio < high)
    branches = {
        "clipped low": (advantages < 0) & (ratio < low),
        "clipped high": (advantages > 0) & (ratio > high),
        "dual clipped": (advantages < 0) & (ratio > DUAL_CLIP),
        "free, positive": (advantages > 0) & (ratio < high),
        "free, negative": (advantages < 0) & (ratio > low) & (ratio < DUAL_CLIP),
        "capped": ratio > RATIO_CAP,
        "inside": inside | torch.tensor(sequence),
        "sampler below": case.rollout_ratio(sequence) < SAMPLER["correction_low"],
        "sampler above": case.rollout_ratio(sequence) > SAMPLER["correction_high"],
        "divergence above 10": case.ref_logprobs - case.logprobs > 2.6,
    }
    missing = [name for name, where in branches.items() if not (where & mask).any()]
    assert not missing, f"the data lack {missing}"
    assert (~mask).any() and (case.lengths == 0).any()


def weights_of(case: OffPolicy, mean: str, num_responses: int, horizon: int = 1) -> Tensor | None:  # [N, L]
    """`token_weights` that turn the token mean into another mean, as `grpo_loss` says."""
    each = {
        "token_mean": None,
        "response_mean": case.num_tokens / (num_responses * case.lengths.clamp(min=1).double()),
        "response_sum": torch.full_like(case.advantages, case.num_tokens / num_responses),
        "constant": torch.full_like(case.advantages, case.num_tokens / (num_responses * horizon)),
    }[mean]
    return None if each is None else case.of_tokens(each)


@dataclass(frozen=True)
class Result:
    """A loss and its gradients by what it was given."""

    loss: Tensor  # []
    by_logprobs: Tensor  # [N, L]
    by_entropy: Tensor | None = None  # [N, L]


def ours(
    case: OffPolicy,
    objective: Objective,
    token_weights: Tensor | None = None,  # [N, L]
    num_loss_tokens: int | None = None,
) -> Result:
    """`grpo_loss` with NaN or inf in all that lies outside the mask, which must not come out."""

    def packed(values: Tensor, garbage: float = nan) -> Tensor:
        return values.masked_fill(~case.mask, garbage).flatten()

    logprobs, entropy = (packed(v).requires_grad_() for v in (case.logprobs, case.entropy))
    output: LossOutput = grpo_loss(
        logprobs,
        packed(case.old_logprobs),
        packed(case.of_tokens(case.advantages)),
        case.mask.flatten(),
        num_loss_tokens or case.num_tokens,
        objective,
        entropy=entropy if objective.entropy_coef else None,
        ref_logprobs=packed(case.ref_logprobs, inf) if objective.kl_coef else None,
        rollout_logprobs=packed(case.rollout_logprobs, -inf) if objective.correction != "none" else None,
        token_weights=None if token_weights is None else packed(token_weights),
        cu_seqlens=case.cu_seqlens if objective.needs_whole_responses else None,
    )
    output.loss.backward()
    gradients = [None if t.grad is None else t.grad.view(case.mask.shape) for t in (logprobs, entropy)]
    assert gradients[0] is not None and (gradients[0][~case.mask] == 0).all()
    return Result(output.loss.detach(), *gradients)


def assert_same(got: Result, want: Result, rtol: float = 1e-12) -> None:
    """In float64, where both give a gradient."""
    torch.testing.assert_close(got.loss, want.loss, rtol=rtol, atol=1e-15)
    torch.testing.assert_close(got.by_logprobs, want.by_logprobs, rtol=rtol, atol=1e-15)
    if want.by_entropy is not None:
        torch.testing.assert_close(got.by_entropy, want.by_entropy, rtol=rtol, atol=1e-15)


def assert_differ(got: Result, want: Result, by: float = 1e-3) -> None:
    """In the gradient, by more than this part of its largest element."""
    assert float((got.by_logprobs - want.by_logprobs).abs().max()) > by * float(want.by_logprobs.abs().max())


def assert_as_exact(ours: Tensor, theirs: Tensor, truth: Tensor, floor: float = 1e-6, near: float = 2e-5) -> None:
    """Our error against float64 is at most twice the peer's plus a floor, and the peer confirms what is true."""
    scale = float(truth.abs().max())
    our_error, their_error = (float((t.double() - truth).abs().max()) / scale for t in (ours, theirs))
    assert their_error < near, f"the peer is {their_error:.1e} away from float64"
    assert our_error <= 2 * their_error + floor, f"ours {our_error:.1e}, the peer's {their_error:.1e}"


def head(num_tokens: int = 40, width: int = 12, vocabulary: int = 61) -> tuple[list[Tensor], Tensor]:
    """Hidden states, weight and bias, in float64, whose logits reach some tens, and targets."""
    generator = torch.Generator().manual_seed(3)
    shapes = (num_tokens, width), (vocabulary, width), (vocabulary,)
    tensors = [torch.randn(s, generator=generator).double() * 1.5 for s in shapes]
    return tensors, torch.randint(vocabulary, (num_tokens,), generator=generator)


def differentiated(function: Callable, tensors: list[Tensor]) -> list[Tensor]:
    """Logprobs and entropy of `function`, and the gradients of a loss that uses both."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    logprobs, entropy = function(*leaves)
    each = torch.linspace(-1, 1, logprobs.numel(), dtype=logprobs.dtype)
    ((logprobs * each).sum() + 0.3 * (entropy * each.flip(0)).sum()).backward()
    return [logprobs.detach(), entropy.detach(), *(t.grad for t in leaves if t.grad is not None)]
