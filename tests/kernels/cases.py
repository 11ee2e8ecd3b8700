"""Inputs of the ops, their definition in float64, and the rule by which results are compared."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import torch
from fastgrpo_kernels import GrpoOutput, Objective, linear_grpo, reference
from torch import Tensor

OBJECTIVES = {
    "plain": Objective(),
    "dual_clip": Objective(dual_clip=1.5),
    "cispo": Objective(surrogate="cispo", clip_low=1.0, clip_high=0.3),
    "gspo": Objective(ratio="sequence", clip_low=0.1, clip_high=0.1),
    "sapo": Objective(surrogate="sapo", sapo_positive=1.5, sapo_negative=3.0),
    "dppo_tv": Objective(surrogate="dppo_tv", clip_low=0.02, clip_high=0.01),
    "dppo_kl": Objective(surrogate="dppo_kl", clip_low=0.01, clip_high=0.005, dual_clip=1.4),
    "gmpo": Objective(ratio="geometric_mean", clip_low=0.1, clip_high=0.2),
    "gspo_with_k3": Objective(ratio="sequence", kl_coef=0.1),
    "k1": Objective(kl="k1", kl_coef=0.2),
    "k2_capped": Objective(kl="k2", kl_coef=0.2, kl_cap=0.02),
    "k3": Objective(kl="k3", kl_coef=0.2),
    "k3_capped": Objective(kl="k3", kl_coef=0.2, kl_cap=0.02),
    "entropy": Objective(entropy_coef=0.3),
    "truncate": Objective(correction="truncate", correction_high=1.2),
    "icepop": Objective(correction="icepop", correction_low=0.7, correction_high=1.4),
    "sequence_mask": Objective(correction="sequence_mask", correction_low=0.8, correction_high=1.25),
    "everything_of_tokens": Objective(
        surrogate="dppo_kl", clip_low=0.05, clip_high=0.05, dual_clip=1.5, kl="k2", kl_coef=0.2, entropy_coef=0.1,
        correction="icepop", correction_low=0.7, correction_high=1.4,
    ),
    "everything_of_gmpo": Objective(
        ratio="geometric_mean", kl="k3", kl_coef=0.2, kl_cap=0.05, entropy_coef=0.1,
        correction="truncate", correction_high=1.2,
    ),
    "everything": Objective(
        dual_clip=1.5, ratio="sequence", kl="k3", kl_coef=0.2, kl_cap=0.05, entropy_coef=0.1,
        correction="sequence_mask", correction_low=0.5, correction_high=2.0,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A packed micro-batch; the first three can have a gradient."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    target_ids: Tensor
    old_logprobs: Tensor | None
    advantages: Tensor
    response_mask: Tensor
    ref_logprobs: Tensor
    rollout_logprobs: Tensor
    token_weights: Tensor
    cu_seqlens: Tensor
    num_loss_tokens: int

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> "Case":
        """The case with hidden, weight and bias in this dtype, requiring a gradient, and fields in float32 or wider."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        moved = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                kind = dtype if f.name in ("hidden", "weight", "bias") else wide
                value = value.detach().to(device, kind if value.is_floating_point() else None)
            moved[f.name] = (
                value.requires_grad_() if f.name in ("hidden", "weight", "bias") and value is not None else value
            )
        return Case(**moved)

    @property
    def leaves(self) -> list[Tensor]:
        return [t for t in (self.hidden, self.weight, self.bias) if t is not None]

    def ours(self, objective: Objective, **options) -> GrpoOutput:
        return linear_grpo(
            self.hidden, self.weight, self.target_ids, self.old_logprobs, self.advantages, self.response_mask,
            self.num_loss_tokens, objective, bias=self.bias, ref_logprobs=self.ref_logprobs,
            rollout_logprobs=self.rollout_logprobs, token_weights=self.token_weights, cu_seqlens=self.cu_seqlens,
            **options,
        )  # fmt: skip

    def definition(self, objective: Objective, **options) -> Tensor:
        return reference.linear_grpo(
            self.hidden, self.weight, self.target_ids, self.old_logprobs, self.advantages, self.num_loss_tokens,
            objective, bias=self.bias, response_mask=self.response_mask, ref_logprobs=self.ref_logprobs,
            rollout_logprobs=self.rollout_logprobs, token_weights=self.token_weights, cu_seqlens=self.cu_seqlens,
            **options,
        )  # fmt: skip


def make_case(
    num_tokens: int, width: int, vocabulary: int, *, dtype: torch.dtype = torch.float32, bias: bool = True,
    on_policy: bool = False, scale: float = 1.0, temperature: float = 1.0,
) -> Case:  # fmt: skip
    """A random case whose old, reference and rollout logprobs lie near the current ones: some token meets every bound.

    Values are rounded to ``dtype`` first: every dtype that is compared computes from the same numbers.
    """
    generator = torch.Generator().manual_seed(num_tokens * 1000 + vocabulary)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).double()

    hidden, weight = normal(num_tokens, width) * scale, normal(vocabulary, width) * 0.5
    biases = normal(vocabulary) if bias else None
    target_ids = torch.randint(vocabulary, (num_tokens,), generator=generator)
    hidden = hidden.to(dtype).double()
    logprobs, _ = reference.linear_logprobs(hidden, weight, target_ids, bias=biases, temperature=temperature)
    near = [(logprobs + 0.4 * normal(num_tokens)).float().double() for _ in range(3)]
    mask = torch.rand(num_tokens, generator=generator) > 0.3
    inner = sorted(int(i) for i in torch.randint(num_tokens + 1, (4,), generator=generator))
    return Case(
        hidden, weight, biases, target_ids, None if on_policy else near[0], normal(num_tokens).float().double(), mask,
        near[1], near[2], normal(num_tokens).abs().float().double(), torch.tensor([0, *inner, num_tokens]),
        max(num_tokens // 2, 1),
    )  # fmt: skip


def value_and_gradients(case: Case, loss: Callable[[Case], Tensor]) -> list[Tensor]:
    result = loss(case)
    for leaf in case.leaves:
        leaf.grad = None
    result.backward()
    return [result.detach(), *(torch.zeros_like(t) if t.grad is None else t.grad for t in case.leaves)]


def distance(got: Tensor, oracle: Tensor) -> float:
    return float((got.detach().double().cpu() - oracle.detach().double()).norm())


def assert_as_exact_as_torch(
    ours: Iterable[Tensor], torchs: Iterable[Tensor], oracles: Iterable[Tensor], largest_terms: float = 0.0
) -> None:
    """Fails where our error against float64 is more than twice that of plain torch in the same dtype, plus last bits.

    ``largest_terms``: the largest number that a sum adds up; its last bits count where the sum itself cancels.
    """
    for got, torchs_own, oracle in zip(ours, torchs, oracles, strict=True):
        assert got.shape == oracle.shape
        eps = max(torch.finfo(got.dtype).eps, torch.finfo(torchs_own.dtype).eps)
        floor = 8 * eps * max(float(oracle.norm()), largest_terms)
        ours_off, torchs_off = distance(got, oracle), distance(torchs_own, oracle)
        assert ours_off <= 2 * torchs_off + floor, f"off by {ours_off:.2e}, plain torch {torchs_off:.2e}, {floor=:.2e}"
