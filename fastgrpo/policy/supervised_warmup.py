"""A short supervised warm-up: what turns a randomly initialised tiny model into the base of a demonstration."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from fastgrpo.policy.packing import pack
from fastgrpo.policy.policy import Policy
from fastgrpo.types import Prompt, Response, Sample


def demonstration(prompt_ids: np.ndarray, response_ids: np.ndarray) -> Sample:
    """A response that nobody sampled: its tokens carry the loss, its logprobs and advantage mean nothing."""
    response = Response(response_ids, np.zeros(len(response_ids), dtype=np.float32), "stop", policy_version=0)
    return Sample(Prompt.of_ids(prompt_ids), response)


def supervised_warmup(
    policy: Policy,
    demonstrations: Sequence[Sample],
    *,
    steps: int,
    sequences_per_step: int,
    learning_rate: float,
    seed: int,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Maximises the mean logprob of the response tokens with AdamW and a cosine schedule, on one process."""
    optimizer = torch.optim.AdamW(
        policy.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    order = np.random.default_rng(seed)
    for step in range(1, steps + 1):
        chosen = order.integers(len(demonstrations), size=sequences_per_step)
        logprobs, _ = policy(pack([demonstrations[i] for i in chosen]), entropy=False)
        loss = -logprobs.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        on_step(step, loss.item())
