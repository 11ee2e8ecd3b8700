"""One off-policy batch for all peers, and what our own code makes of it."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from fastgrpo_kernels import Objective, grpo_loss
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from fastgrpo.algorithm.objective_settings import chooses_tokens, objective_of
from fastgrpo.config import ObjectiveConfig
from fastgrpo.models.packed_batch import PackedBatch
from fastgrpo.policy.aggregation import denominator, token_weights, verl_denominator
from fastgrpo.policy.losses import from_logprobs
from fastgrpo.policy.packing import pack
from fastgrpo.policy.policy import Policy
from fastgrpo.policy.token_choice import choose, keys_of, statistics_of, with_choice
from fastgrpo.types import Prompt, Response, Sample

CLIP = {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 10.0}
AROUND_THE_BOUNDS = [0.01, 0.5, 0.79, 0.81, 1.0, 1.27, 1.29, 9.9, 10.1, 50.0, 1000.0]
VOCABULARY = 64


@dataclass(frozen=True)
class OffPolicyBatch:
    """Ragged responses whose tokens have drifted from far below to far above the old probability."""

    prompts: list[np.ndarray]
    responses: list[np.ndarray]
    advantages: Tensor  # [N] float64, both signs and zero
    log_ratio: Tensor  # [N, L] float64
    mask: Tensor  # [N, L] bool

    @property
    def num_tokens(self) -> int:
        return int(self.mask.sum())

    def rows(self, chosen: slice) -> "OffPolicyBatch":
        return OffPolicyBatch(
            self.prompts[chosen],
            self.responses[chosen],
            self.advantages[chosen],
            self.log_ratio[chosen],
            self.mask[chosen],
        )

    def advantages_of_tokens(self) -> Tensor:  # [R]
        return self.advantages[:, None].expand_as(self.mask)[self.mask]

    def our_loss_and_gradient(self, old_logprobs: Tensor) -> tuple[Tensor, Tensor]:  # [], [N, L] by logprob
        logprobs = (old_logprobs + self.log_ratio)[self.mask].requires_grad_()
        loss, *_ = grpo_loss(
            logprobs, old_logprobs[self.mask], self.advantages_of_tokens(), None, self.num_tokens, Objective(**CLIP)
        )
        loss.backward()
        return loss.detach(), torch.zeros_like(self.log_ratio).masked_scatter(self.mask, logprobs.grad)

    def drifted(self, scale: float, old_logprobs: Tensor) -> "OffPolicyBatch":
        """With so much of the drift, and no probability above 1."""
        return replace(self, log_ratio=(old_logprobs + scale * self.log_ratio).clamp(max=-1e-3) - old_logprobs)

    def published(self, objective: ObjectiveConfig, old_logprobs: Tensor, longest: int = 1) -> tuple[Tensor, Tensor]:
        """Loss and gradient by logprob, [] and [N, L], as the trainer's settings have them, in one micro-batch."""
        logprobs, samples = (old_logprobs + self.log_ratio)[self.mask].requires_grad_(), self.samples()
        batch = self.packed(old_logprobs[self.mask])
        batch = replace(batch, advantages=batch.advantages.double().index_put(
            (batch.response_rows,), self.advantages_of_tokens()))  # fmt: skip
        if chooses_tokens(objective):
            keys = keys_of([samples], samples)[0]
            chosen = choose(statistics_of(keys, batch, (logprobs.detach(), self.entropies())), objective, 0, 0)
            batch = with_choice(batch, keys, chosen)
        batch = replace(batch, token_weights=token_weights(objective.aggregation, batch))
        count = denominator(objective.aggregation, samples, longest)
        if objective.aggregation == "microbatch_mean":
            count = verl_denominator(samples, len(samples))
        given: Any = lambda batch, entropy: (logprobs, None)  # noqa: E731
        from_logprobs(given, batch, count, objective_of(objective), False).loss.backward()
        assert logprobs.grad is not None
        return self.loss_of(objective, logprobs, batch, count), torch.zeros_like(self.log_ratio).masked_scatter(
            self.mask, logprobs.grad
        )

    def loss_of(self, objective: ObjectiveConfig, logprobs: Tensor, batch: PackedBatch, count: float) -> Tensor:
        given: Any = lambda batch, entropy: (logprobs.detach(), None)  # noqa: E731
        return from_logprobs(given, batch, count, objective_of(objective), False).loss

    def entropies(self) -> Tensor:  # [R] some, all different
        return torch.linspace(0.1, 2.0, self.num_tokens, dtype=torch.float64).cos().abs()

    def samples(self) -> list[Sample]:
        zeros = [np.zeros(len(r), dtype=np.float32) for r in self.responses]
        drawn = [Response(r, z, "stop", 0) for r, z in zip(self.responses, zeros, strict=True)]
        rows = zip(self.prompts, drawn, self.advantages.tolist(), strict=True)
        return [Sample(Prompt.of_ids(p, i), r, advantage=a) for i, (p, r, a) in enumerate(rows)]

    def packed(self, old_logprobs: Tensor) -> PackedBatch:  # old_logprobs [R]
        return replace(pack(self.samples()), old_logprobs=old_logprobs)


def make_batch() -> OffPolicyBatch:
    rng = np.random.default_rng(0)
    lengths = [12, 3, 7, 1, 12, 9, 5, 11]
    longest = max(lengths)
    log_ratio = rng.uniform(np.log(1e-3), np.log(1e3), size=(len(lengths), longest))
    log_ratio[0, : len(AROUND_THE_BOUNDS)] = np.log(AROUND_THE_BOUNDS)
    log_ratio[4, : len(AROUND_THE_BOUNDS)] = np.log(AROUND_THE_BOUNDS)

    def ids(count: int) -> np.ndarray:
        return rng.integers(4, VOCABULARY, size=count, dtype=np.int32)

    return OffPolicyBatch(
        prompts=[ids(n) for n in (4, 2, 6, 3, 1, 5, 4, 2)],
        responses=[ids(n) for n in lengths],
        advantages=torch.tensor([1.3, 0.4, -0.7, 0.0, -1.1, 0.9, -2.0, 1.2], dtype=torch.float64),
        log_ratio=torch.from_numpy(log_ratio),
        mask=torch.arange(longest) < torch.tensor(lengths)[:, None],
    )


def make_old_logprobs(batch: OffPolicyBatch) -> Tensor:  # [N, L]
    return -torch.rand(batch.mask.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 5


def tiny_model(dtype: torch.dtype, attention: str) -> Qwen2ForCausalLM:
    """Always the same weights, whatever the dtype: bfloat16's, which every dtype holds exactly."""
    shape = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM._from_config(shape, attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter + torch.randn_like(parameter) * 0.15).bfloat16())
    return model.to(dtype)


def our_policy(dtype: torch.dtype) -> Policy:
    return Policy(tiny_model(dtype, "fastgrpo_padded").eval(), temperature=1.0, head_chunk_tokens=16)


def our_gradients(policy: Policy, batches: list[PackedBatch], num_loss_tokens: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradient of an update, accumulated over its micro-batches."""
    policy.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        logprobs, _ = policy(batch)
        old = batch.old_logprobs.to(logprobs.dtype)
        advantages = batch.advantages[batch.response_mask]
        loss, *_ = grpo_loss(logprobs, old, advantages, None, num_loss_tokens, Objective(**CLIP))
        loss.backward()
        total += loss.detach()
    return total, {name: p.grad.clone() for name, p in policy.model.named_parameters()}


def assert_as_exact_as(peer: dict[str, Tensor], ours: dict[str, Tensor], oracle: dict[str, Tensor]) -> None:
    """Our float32 error against float64 is at most twice the peer's plus a floor, and the peer is near the oracle."""
    assert peer.keys() == ours.keys() == oracle.keys()
    for name, exact in oracle.items():
        scale = float(exact.abs().max())
        peer_error = float((peer[name].double() - exact).abs().max()) / scale
        our_error = float((ours[name].double() - exact).abs().max()) / scale
        assert peer_error < 2e-5, f"{name}: the peer is {peer_error:.1e} away from float64"
        assert our_error <= 2 * peer_error + 1e-6, f"{name}: ours {our_error:.1e}, the peer's {peer_error:.1e}"
