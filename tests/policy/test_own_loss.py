"""A loss of a recipe's own: what it is given, what it may give back, and that it trains as the fused one does."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from fastgrpo.algorithm import Algorithm, TokenLoss, Tokens
from fastgrpo.algorithm.scoring import RecipeError
from fastgrpo.config import ObjectiveConfig, OptimizerConfig, ParallelConfig
from fastgrpo.policy.learner import Learner, Update
from fastgrpo.policy.packing import SequenceCost
from fastgrpo.policy.policy import Policy
from fastgrpo.policy.reference import Reference
from fastgrpo.policy.sharding import shard
from fastgrpo.policy.token_sums import TokenSums
from fastgrpo.ranks import Ranks
from tests.launched import run_ranks
from tests.tiny import sequences, tiny_model

TEMPERATURE = 0.8


def clip(tokens: Tokens) -> torch.Tensor:
    ratio, advantages = (tokens.logprobs - tokens.old_logprobs).exp(), tokens.advantages
    worth = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.28) * advantages)
    return -torch.where(advantages < 0, worth.maximum(10 * advantages), worth)


def learner_of(ranks, own: TokenLoss | None = None, objective: ObjectiveConfig = ObjectiveConfig()) -> Learner:  # noqa: B008
    def policy(shift: float) -> Policy:
        model = tiny_model("qwen2", "fastgrpo_padded", torch.float64)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(shift)
        return shard(Policy(model, TEMPERATURE, 16), ranks.mesh, torch.float64)

    reference = Reference(policy(1.05)) if objective.kl_coef else None
    settings = OptimizerConfig(tokens_per_microbatch=90)
    return Learner(policy(1.0), ranks, SequenceCost(100.0, 1.0), objective, settings, True, reference, own)


def rows() -> list[Any]:
    return [replace(s, advantage=0.0) if n % 5 == 0 else s for n, s in enumerate(sequences(14))]


def off_policy(learner: Learner) -> Update:
    """The update with old logprobs that put ratios on both sides of every bound."""
    update = learner.with_old_logprobs(learner.pack(rows()))
    old = [b.old_logprobs + torch.sin(40 * b.old_logprobs) * 3 for b in update.batches]
    return replace(update, batches=[replace(b, old_logprobs=o) for b, o in zip(update.batches, old, strict=True)])


def gradients(learner: Learner, update: Update, sums: TokenSums | None = None) -> list[torch.Tensor]:
    learner.backward(update, sums or TokenSums.zero())
    found = [p.grad.full_tensor().clone() for p in learner.parameters]
    learner.optimizer.zero_grad()
    return found


@pytest.mark.parametrize(
    "settings, first",
    [({}, True), ({}, False), ({"kl_coef": 0.3, "kl": "k2", "entropy_coef": 0.1}, False),
     ({"aggregation": "sequence_mean"}, False), ({"aggregation": "microbatch_mean"}, True)],
    ids=str,
)  # fmt: skip
def test_a_clip_of_one_s_own_has_the_fused_gradient(ranks, settings, first):
    """With the settings' divergence, bonus and aggregation, and with responses that have no advantage."""
    objective = ObjectiveConfig(**settings)
    fused, own = learner_of(ranks, None, objective), learner_of(ranks, clip, objective)
    updates = [learner.pack(rows()) if first else off_policy(learner) for learner in (fused, own)]
    sums = [TokenSums.zero(), TokenSums.zero()]
    expected, found = (gradients(*one) for one in zip((fused, own), updates, sums, strict=True))
    assert any(float(g.norm()) > 1e-3 for g in expected)
    for theirs, ours in zip(expected, found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11)
    known, own_figures = (TokenSums.metrics(s.values, 100) for s in sums)
    assert math.isnan(own_figures["clip_frac"]), "nobody knows what it clips"
    if settings.get("kl_coef"):
        assert own_figures["reference_kl"] == pytest.approx(known["reference_kl"])


def test_it_is_given_the_tokens_of_whole_responses(ranks):
    seen: list[Tokens] = []

    def look(tokens: Tokens) -> torch.Tensor:
        seen.append(tokens)
        return clip(tokens)

    learner = learner_of(ranks, look, ObjectiveConfig(kl_coef=0.1))
    first, later = learner.pack(rows()), off_policy(learner)
    gradients(learner, first)
    gradients(learner, later)
    by_ids = {s.response.response_ids.tobytes(): s for s in rows()}
    for tokens, batch in zip(seen, [*first.batches, *later.batches], strict=True):
        starts = tokens.cu_seqlens.tolist()
        assert starts[0] == 0 and starts[-1] == len(tokens.logprobs)
        ids = batch.at_responses(batch.target_ids).int()
        for start, stop in pairwise(starts):
            sample = by_ids[ids[start:stop].numpy().tobytes()]
            assert tokens.advantages[start:stop].tolist() == [float(torch.tensor(sample.advantage))] * (stop - start)
            assert tokens.rollout_logprobs[start:stop].tolist() == sample.response.rollout_logprobs.tolist()
        assert {t.dtype for t in (tokens.logprobs, tokens.advantages, tokens.old_logprobs)} == {torch.float64}
        assert tokens.logprobs.requires_grad and tokens.entropy.requires_grad
        assert not tokens.old_logprobs.requires_grad and not tokens.ref_logprobs.requires_grad
        current = batch.old_logprobs is None
        assert torch.equal(tokens.old_logprobs, tokens.logprobs) == current
        assert not torch.equal(tokens.ref_logprobs, tokens.logprobs)
    assert sum(len(t.cu_seqlens) - 1 for t in seen) == 2 * len(rows())  # those without advantage are among them


def test_without_a_divergence_there_is_no_reference_and_responses_without_advantage_are_given_too(ranks):
    seen: list[Tokens] = []

    def look(tokens: Tokens) -> torch.Tensor:
        seen.append(tokens)
        return clip(tokens)

    learner = learner_of(ranks, look)
    gradients(learner, learner.pack(rows()))
    assert all(tokens.ref_logprobs is None for tokens in seen)
    assert sum(len(t.cu_seqlens) - 1 for t in seen) == len(rows()) and any((t.advantages == 0).any() for t in seen)


def boom(tokens: Tokens) -> torch.Tensor:
    return tokens.nothing


WRONG = {
    "failed: AttributeError: 'Tokens' object has no attribute 'nothing'": boom,
    "got NoneType": lambda tokens: None,
    r"got torch.float64 \[\] on cpu": lambda tokens: clip(tokens).mean(),
    r"got torch.float32 \[\d+\] on cpu": lambda tokens: clip(tokens).float(),
    r"got torch.float64 \[\d+\] on meta": lambda tokens: clip(tokens).to("meta"),
    "got losses without a gradient": lambda tokens: clip(tokens).detach(),
    "got some that are not finite": lambda tokens: clip(tokens) / 0,
}


@pytest.mark.parametrize("complaint", WRONG)
def test_what_is_no_loss_of_each_token_is_refused_at_the_first_micro_batch(ranks, complaint):
    function, calls = WRONG[complaint], []
    name = function.__qualname__

    def counted(tokens: Tokens) -> torch.Tensor:
        calls.append(tokens)
        return function(tokens)

    counted.__qualname__ = name
    learner = learner_of(ranks, counted)
    with pytest.raises(RecipeError, match=f"{name}, the recipe's loss, .*{complaint}"):
        gradients(learner, learner.pack(rows()))
    assert len(calls) == 1


def where_rank_1_alone_has_a_nan_and_then_one_has_no_token() -> None:
    """What the next test starts as two ranks."""
    torch.set_num_threads(1)
    ranks = Ranks.connect(torch.device("cpu"), ParallelConfig(timeout_s=60))

    def own(tokens: Tokens) -> torch.Tensor:
        return clip(tokens) / (1 - ranks.rank)

    learner = learner_of(ranks, own)
    with pytest.raises(RecipeError, match=r"own, the recipe's loss, .* got some that are not finite"):
        learner.backward(learner.pack(rows()), TokenSums.zero())
    learner = learner_of(ranks, boom)
    with pytest.raises(RecipeError, match="boom, the recipe's loss, failed"):
        learner.backward(learner.pack(rows()[1:2]), TokenSums.zero())


def test_all_ranks_hear_of_a_loss_that_breaks_on_one_of_them():
    run_ranks(f"from {__name__} import where_rank_1_alone_has_a_nan_and_then_one_has_no_token as f; f()", 2)


def test_what_breaks_later_is_told_too(ranks):
    calls = []

    def own(tokens: Tokens) -> torch.Tensor:
        calls.append(tokens)
        return clip(tokens) if len(calls) == 1 else clip(tokens).mean()

    learner = learner_of(ranks, own)
    with pytest.raises(RecipeError, match=r"own, the recipe's loss, must return .* got torch.float64 \[\]"):
        learner.backward(learner.pack(rows()), TokenSums.zero())


def test_a_rank_that_has_nothing_to_learn_from_does_not_call_it(ranks):
    learner = learner_of(ranks, boom)
    assert all(float(g.norm()) == 0 for g in gradients(learner, learner.pack([])))
    with pytest.raises(RecipeError, match="boom, the recipe's loss, failed"):  # the first micro-batch that has tokens
        learner.backward(learner.pack(rows()), TokenSums.zero())


def test_a_run_folder_records_it_by_its_name_and_code():
    assert Algorithm(loss=clip).describe()["loss"] == "clip"
    assert Algorithm().describe()["loss"] is None
    one, other = (Algorithm(loss=lambda t, w=w: w * clip(t)).describe()["loss"] for w in (1.0, 2.0))
    assert one["code"] == other["code"] and one != other
    with pytest.raises(ValueError, match="loss must be a function, got 3"):
        Algorithm(loss=3)  # type: ignore[arg-type]
