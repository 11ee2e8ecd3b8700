"""Whether trainer and sampler compute, of the weights that are there, what the model itself computes of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from fastgrpo.models.decoder import decoder_of
from fastgrpo.models.load import OWN, set_attention
from fastgrpo.models.packed_batch import PackedBatch
from fastgrpo.policy.learner import Learner
from fastgrpo.policy.packing import pack
from fastgrpo.policy.policy import Policy
from fastgrpo.policy.sharding import reshard
from fastgrpo.rollout.compare_weights import WeightMismatch
from fastgrpo.rollout.rollouts import Rollouts
from fastgrpo.types import Prompt, Response, Sample

PROMPT_TOKENS = 512
"""Of a longer prompt the beginning is tried: the model's own attention may write down the scores of all pairs of
tokens."""
RESPONSE_TOKENS = 16
MEANS = {torch.float8_e4m3fn: 0.3, torch.bfloat16: 0.1, torch.float16: 0.1}
OTHERWISE = 2e-3
"""Mean difference of a token's logprob, nats: rounding is far below, stale or misplaced weights are far above."""
LARGEST = 20
"""A single token's may be so many times the mean's."""


def allowed(dtype: torch.dtype) -> float:
    """What a computation in this dtype may be off in the mean, in nats."""
    return MEANS.get(dtype, OTHERWISE)


@dataclass(frozen=True)
class Difference:
    """Between two logprobs of the same tokens, over all ranks."""

    mean: float
    largest: float
    num_tokens: int

    @classmethod
    def of(cls, ours: Tensor, theirs: Tensor, learner: Learner) -> "Difference":
        sizes = (ours.float() - theirs.float()).abs().double().cpu()
        parts = learner.ranks.gather([(float(sizes.sum()), float(sizes.max()), len(sizes))])
        totals, largest, counts = zip(*parts, strict=True)
        return cls(sum(totals) / sum(counts), max(largest, key=_nan_first), sum(counts))

    def is_above(self, dtype: torch.dtype) -> bool:
        mean = allowed(dtype)
        return not (self.mean <= mean and self.largest <= LARGEST * mean)

    def __str__(self) -> str:
        return f"{self.mean:.2g} in the mean and {self.largest:.2g} at most"


def probe(prompts: Sequence[Prompt], rollouts: Rollouts, learner: Learner, dtype: torch.dtype) -> Difference:
    """How far the engine, which computes in ``dtype``, is from the trainer.

    All ranks take part. Raises WeightMismatch above what rounding can do.
    """
    batch = _packed(_drawn(prompts, rollouts, learner), learner)
    return _compared(_trainers(batch, learner), batch, learner, dtype)


def prove_weights(
    prompts: Sequence[Prompt],  # two
    rollouts: Rollouts,
    learner: Learner,
    dtypes: tuple[torch.dtype, torch.dtype],  # in which the trainer and the engine compute
) -> tuple[Difference, Difference]:
    """How far the trainer is from the model's own forward pass, and the engine from the trainer.

    All ranks take part. Raises ValueError if the trainer, WeightMismatch if the engine is further off than rounding is.
    """
    samples = _drawn(prompts, rollouts, learner)
    batch = _packed(samples, learner)
    ours = _trainers(batch, learner)
    try:
        alone = _by_itself(learner.policy, samples)
    except (torch.OutOfMemoryError, MemoryError):  # of this rank, while the others wait for it: its end ends them
        raise
    except Exception as error:  # of the model's own code
        if not learner.ranks.all_come("own pass fails"):
            raise
        raise ValueError(
            f"the model's own forward pass of text alone fails ({type(error).__name__}: {error}), so that nothing can "
            f"be compared with it: --model.skip_proof begins without"
        ) from error
    own = Difference.of(ours, alone, learner)
    if own.is_above(dtypes[0]):
        if broken := _not_finite(learner):
            raise ValueError(f"{broken}: the model's files are broken")
        name = type(learner.policy.model).__name__
        raise ValueError(
            f"the trainer would compute this {name} wrongly: over {own.num_tokens} tokens its logprobs differ by {own} "
            f"from those of the model's own forward pass, more than {allowed(dtypes[0]):g} in the mean. "
            f"In small it was right: the causes left are the kernels of --model.attention, and --model.compile. Try "
            f"--model.attention eager, which packs nothing. --model.skip_proof trains it as it is"
        )
    return own, _compared(ours, batch, learner, dtypes[1])


def _compared(ours: Tensor, batch: PackedBatch, learner: Learner, dtype: torch.dtype) -> Difference:
    found = Difference.of(ours, batch.at_responses(batch.rollout_logprobs), learner)
    if found.is_above(dtype):
        if broken := _not_finite(learner):
            raise WeightMismatch(f"{broken}: training has diverged. Begin again with a lower --optimizer.learning_rate")
        raise WeightMismatch(
            f"engine and trainer hold the same weights and mean different things by them: over {found.num_tokens} "
            f"tokens of probe prompts their logprobs differ by {found}, more than {allowed(dtype):g} in "
            f"the mean. The engine may sample at another temperature or with top-p, know the architecture under other "
            f"constants (rope, norm epsilon, softcap), or have kept keys and values of older weights"
        )
    return found


def _drawn(prompts: Sequence[Prompt], rollouts: Rollouts, learner: Learner) -> list[Sample]:
    """Two responses to the first prompt and one to the second, for every rank of its own engine."""
    ranks = learner.ranks
    # Positions that no run reaches: the draws are the probe's own.
    begun = [replace(p, prompt_ids=p.prompt_ids[:PROMPT_TOKENS]) for p in prompts]
    asked = [replace(begun[i % 2], position=-1 - i) for i in range(2 * ranks.count)]
    sampling = replace(rollouts.sampling, group_size=2, max_response_tokens=RESPONSE_TOKENS)
    drawn = [[s.without_texts() for s in group] for group in rollouts.generate(asked, sampling)]
    everyone = ranks.gather(drawn, [Sample, Prompt, Response])
    everyone.sort(key=lambda group: -group[0].prompt.position)  # as they were asked, whichever rank has them
    first, second = ranks.share_of(everyone)
    return [*first, second[0]]


def _packed(samples: Sequence[Sample], learner: Learner) -> PackedBatch:
    return pack(samples, share_prompts=learner.shares_prompts).to(learner.ranks.device)


@torch.no_grad()
def _trainers(batch: PackedBatch, learner: Learner) -> Tensor:  # [R]
    logprobs, _ = learner.policy(batch, entropy=False)
    reshard(learner.policy)
    return logprobs


@torch.no_grad()
def _by_itself(policy: Policy, samples: Sequence[Sample]) -> Tensor:  # [R]
    """Logprobs of the model's own forward pass, one sequence at a time, with its own attention, masks and head."""
    model, before = policy.model, decoder_of(policy.model).config._attn_implementation
    set_attention(model, OWN)
    try:
        # A compiled layer would be compiled anew for a few sequences.
        with torch.compiler.set_stance("force_eager"):
            return torch.cat([policy.own_logprobs(s.prompt.prompt_ids, s.tokens.response_ids) for s in samples])
    finally:
        set_attention(model, before)
        reshard(policy)


def _not_finite(learner: Learner) -> str:
    """Which weights of the trainer have a NaN or an infinity, in words, or ""; all ranks take part."""
    broken = [
        name
        for name, parameter in learner.policy.model.named_parameters()
        if not torch.isfinite(_local(parameter.data)).all()
    ]
    names = list(dict.fromkeys(learner.ranks.gather(broken)))
    others = f", and so do {len(names) - 1} others" if names[1:] else ""
    return f"the weight {names[0]} holds a NaN or an infinity{others}" if names else ""


def _local(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def _nan_first(value: float) -> float:
    return float("inf") if value != value else value
