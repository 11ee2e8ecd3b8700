"""The proof of an architecture, before weights load: on a tiny float32 copy of the model's configuration with random
weights, the trainer's and the sampler's logprobs are those of the model's own forward pass.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from fastgrpo.models.decoder import layers_of
from fastgrpo.models.load import OWN, dropout_rates, set_attention
from fastgrpo.models.own_pass import own_logprobs
from fastgrpo.models.packed_batch import PackedBatch
from fastgrpo.models.tiny import CannotShrink, tiny_config, tiny_model
from fastgrpo.models.tiny_sizes import FIRST_TOKEN
from fastgrpo.policy.activations import recompute_first
from fastgrpo.policy.packing import pack
from fastgrpo.policy.policy import Policy
from fastgrpo.rollout.engine_protocol import RolloutEngine
from fastgrpo.rollout.generate import generate
from fastgrpo.types import Prompt, Response, Sample, Sampling

TOLERANCE = 1e-4
"""Nats, and of gradients the share of the largest: float32 rounds far below it in so small a model."""
TEMPERATURE = 0.7
_PROMPTS, _RESPONSES = (5, 3), ((7, 0), (4, 0), (9, 1))  # lengths; (length, prompt)

EngineOf = Callable[[PreTrainedModel], RolloutEngine]


Check = Literal["packing", "rows", "sharing", "checkpointing", "sampling"]
"""Sequences end to end under attention of ours, or else a padded row for each; prompts that stand once; layers that
recompute; the engine."""


class Failure(Exception):
    """A check that was not passed. ``passed`` are those before it."""

    def __init__(self, check: Check, difference: float = float("nan"), error: str = "") -> None:
        found = f"fails: {error}" if error else f"is off by {difference:.2g}, more than {TOLERANCE:g}"
        super().__init__(f"{check} {found}")
        self.check, self.difference, self.error = check, difference, error
        self.passed: tuple[Check, ...] = ()


def prove_architecture(
    config: PretrainedConfig,
    attention: str | None,
    engine_of: EngineOf | None,
    *,
    recomputes: bool = True,
    trust_remote_code: bool = False,
) -> list[Check]:
    """The checks that were made and passed.

    ``attention`` is transformers' name of the trainer's, one that runs on a CPU; without it only the engine is tried,
    and without ``engine_of`` only the trainer. ``recomputes`` asks for the second way to a gradient, where transformers
    has it. Raises Failure, CannotShrink where there is no tiny copy to try, or ValueError for a model that fastgrpo
    refuses by itself. Draws nothing from the generators of others.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = tiny_model(tiny_config(config, trust_remote_code), trust_remote_code)
        samples = _made_up_samples(model)
        try:
            own = _by_itself(model, samples)
        except Exception as error:  # of code that meets sizes which it was not made for
            raise CannotShrink(f"{type(error).__name__}: {error}") from error
        done: list[Check] = []
        try:
            if attention is not None:
                done.extend(_of_policy(model, attention, samples, own, recomputes))
            if engine_of is not None:
                _sampling(model, engine_of)
                done.append("sampling")
        except Failure as failure:
            failure.passed = tuple(done)
            raise
    return done


def _made_up_samples(model: PreTrainedModel) -> list[Sample]:
    """Two responses to one prompt, and one to another."""
    random = np.random.default_rng(0)
    vocabulary = len(model.get_output_embeddings().weight)

    def ids(length: int) -> np.ndarray:
        return random.integers(FIRST_TOKEN, vocabulary, length).astype(np.int32)

    prompts = [Prompt.of_ids(ids(length), n) for n, length in enumerate(_PROMPTS)]
    return [
        Sample(prompts[prompt], Response(ids(length), np.zeros(length, np.float32), "length", 0))
        for length, prompt in _RESPONSES
    ]


@dataclass(frozen=True)
class _Pass:
    logprobs: Tensor  # [R]
    gradients: dict[str, Tensor]  # of a weighted sum of the logprobs

    @classmethod
    def of(cls, model: PreTrainedModel, logprobs: Tensor) -> "_Pass":
        weights = torch.linspace(-1.0, 1.5, len(logprobs), dtype=logprobs.dtype)
        (logprobs * weights).sum().backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        model.zero_grad(set_to_none=True)
        return cls(logprobs.detach(), gradients)

    def difference(self, other: "_Pass") -> float:
        """The largest of a logprob, or of a gradient as a share of the largest gradient."""
        largest = max(float(g.abs().max()) for g in self.gradients.values())
        found = [float((self.logprobs - other.logprobs).abs().max())]
        for name in self.gradients.keys() | other.gradients.keys():
            mine, theirs = self.gradients.get(name), other.gradients.get(name)
            some = mine if mine is not None else theirs
            assert some is not None
            nothing = torch.zeros_like(some)
            apart = (nothing if mine is None else mine) - (nothing if theirs is None else theirs)
            found.append(float(apart.abs().max()) / largest)
        return float(np.max(found))  # NaN if one is


def _by_itself(model: PreTrainedModel, samples: Sequence[Sample]) -> _Pass:
    return _Pass.of(model, _own(model, samples))


def _own(model: PreTrainedModel, samples: Sequence[Sample]) -> Tensor:  # [R]
    ids = [(s.prompt.prompt_ids, s.tokens.response_ids) for s in samples]
    return torch.cat([own_logprobs(model, prompt, response, TEMPERATURE) for prompt, response in ids])


def _of_policy(
    model: PreTrainedModel, attention: str, samples: Sequence[Sample], own: _Pass, recomputes: bool
) -> Iterator[Check]:
    policy = Policy(model, TEMPERATURE, head_chunk_tokens=0)
    with _checking("packing"):
        set_attention(model, attention)
    shared = pack(samples, share_prompts=policy.can_share_prompts)
    yield _compared("packing" if policy.can_share_prompts else "rows", policy, pack(samples), own)
    if policy.can_share_prompts:
        yield _compared("sharing", policy, shared, own)
    if recomputes and model.supports_gradient_checkpointing and not dropout_rates(model.config):
        with _checking("checkpointing"):
            recompute_first(model, len(layers_of(model)))
        yield _compared("checkpointing", policy, shared, own)
        model.gradient_checkpointing_disable()
        model.eval()


def _compared(check: Check, policy: Policy, batch: PackedBatch, own: _Pass) -> Check:
    """The check's name, if the policy's logprobs and gradients are the model's own."""
    with _checking(check):
        found = _Pass.of(policy.model, policy(batch, entropy=False)[0])
        difference = own.difference(found)
    if not difference <= TOLERANCE:
        raise Failure(check, difference)
    return check


@torch.no_grad()
def _sampling(model: PreTrainedModel, engine_of: EngineOf) -> None:
    """Sequences of different lengths drawn in one batch, against the model's own pass over what was drawn."""
    prompts = [replace(s.prompt, position=n) for n, s in enumerate(_made_up_samples(model)[1:])]
    sampling = Sampling(group_size=2, max_response_tokens=8, temperature=TEMPERATURE)
    with _checking("sampling"):
        drawn = [sample for group in generate(engine_of(model), prompts, sampling) for sample in group]
        set_attention(model, OWN)
        own = _own(model, drawn)
    told = torch.from_numpy(np.concatenate([s.tokens.rollout_logprobs for s in drawn]))
    difference = float((own - told).abs().max())
    if not difference <= TOLERANCE:
        raise Failure("sampling", difference)


@contextmanager
def _checking(check: Check) -> Iterator[None]:
    """Whatever the model's code raises, a check has failed."""
    try:
        yield
    except Failure:
        raise
    except Exception as error:
        raise Failure(check, error=f"{type(error).__name__}: {error}") from error
