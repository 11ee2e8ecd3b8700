"""The corrections for what the sampler is not, from the configuration to the gradient, and the figures beside them.

The expected loss is written down here from the formulas alone, one response at a time, in float64.
"""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from fastgrpo_kernels.dispatch import forced

from fastgrpo.algorithm.objective_settings import objective_of, refuse_meaningless
from fastgrpo.config import ObjectiveConfig, OptimizerConfig
from fastgrpo.models.packed_batch import PackedBatch
from fastgrpo.policy.learner import Learner
from fastgrpo.policy.losses import LOSSES
from fastgrpo.policy.mismatch import NUM_BINS, histogram, mismatch_warning, quantile
from fastgrpo.policy.packing import SequenceCost, pack
from fastgrpo.policy.policy import Policy
from fastgrpo.policy.sharding import shard
from fastgrpo.policy.token_sums import TokenSums
from fastgrpo.types import Response, Sample
from tests.tiny import sequences, tiny_model

TEMPERATURE = 0.8
CORRECTIONS = {
    "truncate": ObjectiveConfig(correction="truncate", correction_high=1.2),
    "icepop": ObjectiveConfig(correction="icepop", correction_low=0.7, correction_high=1.4),
    "sequence_mask": ObjectiveConfig(correction="sequence_mask", correction_low=0.85, correction_high=1.2),
}
PACKINGS = ([slice(0, 12)], [slice(0, 3), slice(3, 4), slice(4, 12)])
Gradients = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def plain():
    with forced("plain"):
        yield


def naive_logprobs(model: torch.nn.Module, sequence: Sample) -> torch.Tensor:  # of the response
    ids = torch.from_numpy(
        np.concatenate([sequence.prompt.prompt_ids, sequence.response.response_ids]).astype(np.int64)
    )
    first = len(sequence.prompt.prompt_ids)
    logits = model(ids[None]).logits[0, first - 1 : -1]
    return torch.log_softmax(logits / TEMPERATURE, dim=-1).gather(1, ids[first:, None])[:, 0]


@cache
def rows() -> tuple[list[Sample], list[torch.Tensor]]:
    """Twelve ragged responses to four prompts, and old logprobs; the sampler is off by token and by response."""
    random = np.random.default_rng(5)
    drawn = sequences(12)
    drawn = [replace(row, prompt=drawn[i - i % 3].prompt) for i, row in enumerate(drawn)]
    model = tiny_model("qwen2", "sdpa", torch.float64)
    with torch.no_grad():
        current = [naive_logprobs(model, row) for row in drawn]
    sampler = [c.numpy() + random.normal(0, 0.2) + random.normal(0, 0.4, len(c)) for c in current]
    responses = [
        Response(r.response.response_ids, s.astype(np.float32), "stop", 0) for r, s in zip(drawn, sampler, strict=True)
    ]
    old = [c + torch.from_numpy(random.uniform(-0.4, 0.4, len(c))) for c in current]
    return [replace(row, response=r) for row, r in zip(drawn, responses, strict=True)], old


def correction_weights(old: list[float], rollout: list[float], config: ObjectiveConfig) -> list[float]:
    """TIS: min(r, C). IcePop: r within [a, b], else 0. Sequence mask: 1 where the geometric mean is within, else 0."""
    low, high = config.correction_low, config.correction_high
    ratios = [math.exp(o - r) for o, r in zip(old, rollout, strict=True)]
    if config.correction == "truncate":
        return [min(r, high) for r in ratios]
    if config.correction == "icepop":
        return [r if low <= r <= high else 0.0 for r in ratios]
    mean = math.prod(ratios) ** (1 / len(ratios))
    return [1.0 if low <= mean <= high else 0.0] * len(ratios)


def num_tokens() -> int:
    return sum(len(row.response) for row in rows()[0])


@cache
def naive(name: str, with_old: bool) -> tuple[float, Gradients, list[float]]:
    """Loss, gradient and the weight of every token of the whole update, from the definition."""
    config, model = CORRECTIONS[name], tiny_model("qwen2", "sdpa", torch.float64)
    total, weights = torch.zeros((), dtype=torch.float64), []
    for row, recomputed in zip(*rows(), strict=True):
        logprobs = naive_logprobs(model, row)
        old = recomputed if with_old else logprobs.detach()
        each = correction_weights(old.tolist(), row.response.rollout_logprobs.tolist(), config)
        ratio, advantage = (logprobs - old).exp(), float(np.float32(row.advantage))
        clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
        surrogate = torch.minimum(ratio * advantage, clipped * advantage)
        if advantage < 0:
            surrogate = surrogate.clamp(min=config.dual_clip * advantage)
        total = total - (torch.tensor(each, dtype=torch.float64) * surrogate).sum() / num_tokens()
        weights += each
    total.backward()
    return total.item(), {n: p.grad for n, p in model.named_parameters()}, weights


def packed(part: slice, with_old: bool, share_prompts: bool) -> PackedBatch:
    chosen, old = rows()
    batch = pack(chosen[part], share_prompts=share_prompts)
    assert (batch.shared is not None) == (share_prompts and len(chosen[part]) > 1)
    return replace(batch, old_logprobs=torch.cat(old[part]) if with_old else None)


def loss_and_gradient(config: ObjectiveConfig, loss_path: str, batches: list[PackedBatch]) -> tuple[float, Gradients]:
    policy = Policy(tiny_model("qwen2", "fastgrpo_padded", torch.float64), TEMPERATURE, 5)
    total = 0.0
    for batch in batches:
        loss = LOSSES[loss_path](policy, batch, num_tokens(), objective_of(config), True).loss
        loss.backward()
        total += loss.item()
    return total, {n: p.grad for n, p in policy.model.named_parameters()}


@pytest.mark.parametrize("share_prompts", [False, True], ids=["whole", "shared"])
@pytest.mark.parametrize("with_old", [False, True], ids=["first update", "later update"])
@pytest.mark.parametrize("loss_path", LOSSES)
@pytest.mark.parametrize("name", CORRECTIONS)
def test_loss_and_gradient_are_the_definition_s_in_any_packing(name, loss_path, with_old, share_prompts):
    """In a first update the old logprobs are the current ones: the weight is current over rollout, and a constant."""
    expected, gradients, _ = naive(name, with_old)
    for packing in PACKINGS:
        batches = [packed(part, with_old, share_prompts) for part in packing]
        loss, found = loss_and_gradient(CORRECTIONS[name], loss_path, batches)
        assert loss == pytest.approx(expected, rel=1e-9)
        assert found.keys() == gradients.keys()
        for parameter, gradient in gradients.items():
            torch.testing.assert_close(found[parameter], gradient, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("with_old", [False, True])
@pytest.mark.parametrize("name", CORRECTIONS)
def test_the_cases_have_tokens_on_both_sides_of_every_bound(name, with_old):
    _, gradients, weights = naive(name, with_old)
    cut = [w == (1.2 if name == "truncate" else 0.0) for w in weights]
    assert 0.1 < np.mean(cut) < 0.9
    assert all(float(g.norm()) > 0 for g in gradients.values())


@pytest.mark.parametrize("loss_path", LOSSES)
def test_without_a_correction_the_sampler_s_logprobs_are_not_read(loss_path):
    batches = [packed(slice(0, 12), True, False)]
    broken = [replace(b, rollout_logprobs=torch.full_like(b.rollout_logprobs, math.nan)) for b in batches]
    (loss, gradients), (same, others) = (loss_and_gradient(ObjectiveConfig(), loss_path, b) for b in (batches, broken))
    assert loss == same and math.isfinite(loss)
    assert all(torch.equal(others[name], gradient) for name, gradient in gradients.items())
    if loss_path != "definition":  # whose bounds drop what is NaN
        for config in CORRECTIONS.values():
            assert math.isnan(loss_and_gradient(config, loss_path, broken)[0])


@pytest.mark.parametrize("loss_path", LOSSES)
@pytest.mark.parametrize("name", CORRECTIONS)
def test_a_rank_without_sequences_has_no_loss(name, loss_path):
    loss, gradients = loss_and_gradient(CORRECTIONS[name], loss_path, [pack([])])
    assert loss == 0 and all((g == 0).all() for g in gradients.values())


def test_the_boundaries_of_responses_are_those_of_their_tokens():
    chosen, _ = rows()
    batch = pack(chosen)
    parts = batch.at_responses(batch.rollout_logprobs).split(batch.cu_responses.diff().tolist())
    for part, row in zip(parts, chosen, strict=True):
        assert part.tolist() == row.response.rollout_logprobs.tolist()
    assert pack([]).cu_responses.tolist() == [0, 0]


@pytest.mark.parametrize("tokens_per_microbatch", [64, 4096])
@pytest.mark.parametrize("name", CORRECTIONS)
def test_an_update_has_the_definition_s_gradient_and_reports_its_weights(ranks, name, tokens_per_microbatch):
    policy = shard(
        Policy(tiny_model("qwen2", "fastgrpo_padded", torch.float64), TEMPERATURE, 16), ranks.mesh, torch.float64
    )
    settings = OptimizerConfig(tokens_per_microbatch=tokens_per_microbatch)
    learner = Learner(policy, ranks, SequenceCost(100.0, 1.0), CORRECTIONS[name], settings)
    sums = TokenSums.zero()
    chosen, _ = rows()
    learner.backward(learner.pack(chosen), sums)
    _, gradients, weights = naive(name, False)
    for parameter, gradient in zip(learner.parameters, gradients.values(), strict=True):
        torch.testing.assert_close(parameter.grad.full_tensor(), gradient, rtol=1e-8, atol=1e-10)

    metrics = TokenSums.metrics(ranks.sum(sums.values), num_tokens())
    assert metrics["correction"] == pytest.approx(np.mean(weights), rel=1e-9)
    assert metrics["corrected_frac"] == np.mean([w == (1.2 if name == "truncate" else 0.0) for w in weights])
    model = tiny_model("qwen2", "sdpa", torch.float64)
    with torch.no_grad():
        differences = np.concatenate(
            [row.response.rollout_logprobs - naive_logprobs(model, row).numpy() for row in chosen]
        )
    assert metrics["rollout_kl"] == pytest.approx(differences.mean(), rel=1e-9)
    assert metrics["logprob_diff_above_001_frac"] == (np.abs(differences) > 0.01).mean()
    expected = np.quantile(np.abs(differences), 0.99, method="inverted_cdf")
    assert metrics["logprob_diff_p99"] == pytest.approx(expected, rel=0.027)


def test_a_run_without_a_correction_has_no_weights_to_report(ranks):
    policy = shard(Policy(tiny_model("qwen2", "fastgrpo_padded"), TEMPERATURE, 16), ranks.mesh, torch.float32)
    learner = Learner(policy, ranks, SequenceCost(100.0, 1.0), ObjectiveConfig(), OptimizerConfig())
    sums = TokenSums.zero()
    learner.backward(learner.pack(rows()[0]), sums)
    metrics = TokenSums.metrics(ranks.sum(sums.values), num_tokens())
    assert [name for name, value in metrics.items() if math.isnan(value)] == ["correction", "corrected_frac"]
    # Its old logprobs are the sampler's, and the weights that sampled are gone: there is nothing to compare.
    later = TokenSums.zero()
    learner.backward(replace(learner.with_rollout_logprobs(learner.pack(rows()[0])), is_first=False), later)
    metrics = TokenSums.metrics(later.values, num_tokens())
    assert all(math.isnan(metrics[n]) for n in ("rollout_kl", "logprob_diff_p99", "logprob_diff_above_001_frac"))
    assert mismatch_warning(metrics, 0.02) is None


@pytest.mark.parametrize("name", CORRECTIONS)
def test_a_correction_between_the_sampler_and_itself_is_refused(name):
    with pytest.raises(ValueError, match=r"every weight is 1: take --objective\.old_logprobs recomputed"):
        refuse_meaningless(replace(CORRECTIONS[name], old_logprobs="rollout"))
    refuse_meaningless(ObjectiveConfig(old_logprobs="rollout"))


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("spread", [0.1, 1.0, 2.0])
def test_a_quantile_of_summed_counts_is_that_of_all_values(spread, share):
    random = np.random.default_rng(0)
    parts = [random.lognormal(-4, spread, n) * random.choice([-1, 1], n) for n in (1, 1000, 0, 4321)]
    counts = torch.stack([histogram(torch.from_numpy(p)) for p in parts]).sum(0)
    assert counts.sum() == 5322
    expected = np.quantile(np.abs(np.concatenate(parts)), share, method="inverted_cdf")
    assert quantile(counts, share) == pytest.approx(expected, rel=0.027)


def test_quantiles_beyond_the_bins_and_of_nothing():
    def p99(*values: float) -> float:
        return quantile(histogram(torch.tensor(values)), 0.99)

    assert p99(0.0) == p99(-1e-9, 0.0) == 0.0
    assert p99(*[0.0] * 99, 3.0) == 0.0
    assert p99(*[0.0] * 98, 3.0, 3.0) == pytest.approx(3.0, rel=0.027)
    assert p99(1e3) == 100.0
    assert math.isnan(p99()) and math.isnan(quantile(torch.zeros(NUM_BINS), 0.5))
    for broken in (math.nan, math.inf, -math.inf):
        assert math.isnan(p99(*[0.0] * 999, broken))


def figures(kl: float, p99: float = 0.3, far: float = 0.2) -> dict[str, float]:
    return {"rollout_kl": kl, "logprob_diff_p99": p99, "logprob_diff_above_001_frac": far}


@pytest.mark.parametrize("kl", [0.021, -0.021, 5.0, math.inf])
def test_a_mismatch_is_told_with_its_numbers_and_the_usual_causes_in_order(kl):
    message = mismatch_warning(figures(kl), 0.02)
    assert message is not None
    assert f"{kl:.3g} nats" in message and "0.3 at the 99th percentile" in message and "20.0% of the tokens" in message
    causes = ["prefix cache", "top-p", "chat template", "--objective.correction", "--rollout.max_staleness"]
    places = [message.index(cause) for cause in causes]
    assert places == sorted(places)


def test_logprobs_that_are_not_finite_are_told_and_a_match_is_not():
    message = mismatch_warning(figures(math.nan, math.nan, 1.0), 0.02)
    assert message is not None and "NaN" in message and "not finite" in message
    assert mismatch_warning(figures(0.02), 0.02) is None
    assert mismatch_warning(figures(math.nan, math.nan, math.nan), 0.02) is None  # nothing was compared
    assert all(mismatch_warning(figures(kl), 0.0) is None for kl in (1.0, math.nan))


def test_one_logprob_that_is_nan_shows_in_the_step_s_figures(ranks):
    chosen, _ = rows()
    rollout = chosen[0].response.rollout_logprobs.copy()
    rollout[0] = math.nan
    broken = [replace(chosen[0], response=replace(chosen[0].response, rollout_logprobs=rollout)), *chosen[1:]]
    policy = shard(Policy(tiny_model("qwen2", "fastgrpo_padded"), TEMPERATURE, 16), ranks.mesh, torch.float32)
    learner = Learner(policy, ranks, SequenceCost(100.0, 1.0), ObjectiveConfig(), OptimizerConfig())
    sums = TokenSums.zero()
    learner.backward(learner.pack(broken), sums)
    metrics = TokenSums.metrics(ranks.sum(sums.values), num_tokens())
    assert math.isnan(metrics["rollout_kl"]) and math.isnan(metrics["logprob_diff_p99"])
    assert "NaN" in (mismatch_warning(metrics, 0.02) or "")
