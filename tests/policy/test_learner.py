"""What an update does besides its gradient."""

from dataclasses import replace
from typing import get_args
from unittest import mock

import numpy as np
import pytest
import torch
from torch.distributed.tensor import DTensor

from fastgrpo.config import Aggregation, ModelConfig, ObjectiveConfig, OptimizerConfig, ParallelConfig
from fastgrpo.models.attention import IMPLEMENTATIONS
from fastgrpo.policy import activations
from fastgrpo.policy.activations import Needs, fit, layers_of, recompute_first
from fastgrpo.policy.learner import Learner
from fastgrpo.policy.optimizer import clip, learning_rate
from fastgrpo.policy.packing import SequenceCost, pack
from fastgrpo.policy.policy import as_policy
from fastgrpo.policy.sharding import accumulate, shard
from fastgrpo.policy.token_sums import TokenSums
from fastgrpo.ranks import Ranks
from tests.launched import run_ranks
from tests.tiny import sequences, tiny_model


def learner_of(ranks: Ranks, architecture: str, config: ModelConfig, recomputed: int | None = None) -> Learner:
    model = tiny_model(architecture, "fastgrpo_padded")
    policy = as_policy(model, config, 1.0)
    if recomputed is not None:
        recompute_first(model, recomputed)
    settings = OptimizerConfig(tokens_per_microbatch=128)
    sharded = shard(policy, ranks.mesh, torch.float32)
    return Learner(sharded, ranks, SequenceCost(100.0, 1.0), ObjectiveConfig(), settings)


def gradients(learner: Learner, count: int = 9) -> list[torch.Tensor]:
    learner.backward(learner.with_rollout_logprobs(learner.pack(sequences(count))), TokenSums.zero())
    found = [p.grad.full_tensor() for p in learner.parameters]
    learner.optimizer.zero_grad()
    return found


@pytest.mark.parametrize("recomputed", [2, 1, 0])
@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_layers_that_recompute_change_no_gradient_with_tied_and_untied_heads(ranks, architecture, recomputed):
    plain = learner_of(ranks, architecture, ModelConfig(activation_checkpointing=False))
    some = learner_of(ranks, architecture, ModelConfig(activation_checkpointing="auto"), recomputed)
    assert not any(m.training for layer in some.policy.model.base_model.layers for m in layer.children())
    for expected, got in zip(gradients(plain), gradients(some), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(("settings", "forward_passes"), [(True, 2), ("auto", 1), (False, 1)])
def test_every_layer_recomputes_or_none_on_a_cpu(ranks, settings, forward_passes):
    learner = learner_of(ranks, "qwen2", ModelConfig(activation_checkpointing=settings))
    calls = []
    for layer in learner.policy.model.base_model.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    gradients(learner)
    micro_batches = len(learner.pack(sequences(9)).batches)
    assert len(calls) == 2 * forward_passes * micro_batches


def test_as_few_layers_recompute_as_memory_asks_for():
    needs = Needs(layer=10.0, layer_input=1.0, fixed=100.0)
    assert [needs.recomputed(8, free) for free in (180.0, 179.0, 175.0, 99.0)] == [0, 2, 2, 8]
    assert Needs(layer=10.0, layer_input=10.0, fixed=100.0).recomputed(8, 150.0) == 8  # nothing would be saved
    # What is kept fits, with one layer made anew; with one recomputing layer less it does not.
    for free in range(120, 180):
        count = needs.recomputed(8, free)
        taken = 100 + 10 * (8 - count) + count + 10
        assert taken <= free or count == 8
        assert count < 2 or taken + 9 > free


def test_auto_recomputes_all_or_nothing_where_memory_cannot_tell(ranks, monkeypatch):
    """Of two layers on what passes for a GPU; nothing is measured."""
    as_on_a_gpu, auto = replace(ranks, device=torch.device("cuda")), ModelConfig(activation_checkpointing="auto")
    policy = learner_of(ranks, "qwen2", ModelConfig()).policy
    config = policy.model.config

    def count(loss_path: str = "fused") -> int:
        return fit(policy, as_on_a_gpu, auto, OptimizerConfig(), loss_path)

    assert config._attn_implementation == IMPLEMENTATIONS["padded"]
    assert count() == 2
    config._attn_implementation = IMPLEMENTATIONS["varlen"]
    assert count("definition") == 2
    monkeypatch.setattr(Needs, "of", lambda *_: pytest.fail("nothing has to be measured"))
    recompute_first(policy.model, 0)
    config.attention_dropout = 0.1
    assert count("definition") == 0  # a layer's own forward may draw by the mode that recomputing needs
    config.attention_dropout = 0.0
    monkeypatch.setattr(activations, "_layers_decide", lambda model: False)
    assert count("definition") == 0


def fit_where_rank_1_has_less_memory() -> None:
    """What the next test starts as two ranks, whose CPUs pass for GPUs; counts are of two layers."""
    ranks = Ranks.connect(torch.device("cpu"), ParallelConfig(timeout_s=60))
    learner = learner_of(ranks, "qwen2", ModelConfig())
    learner.policy.model.config._attn_implementation = IMPLEMENTATIONS["varlen"]
    free = [130.0, 111.0][ranks.rank] / activations.USABLE_SHARE
    with (
        mock.patch.object(activations, "free_bytes", return_value=free),
        mock.patch.object(Needs, "of", return_value=Needs(layer=10.0, layer_input=1.0, fixed=100.0)),
    ):
        as_on_gpus = replace(ranks, device=torch.device("cuda"))
        count = fit(learner.policy, as_on_gpus, ModelConfig(activation_checkpointing="auto"), OptimizerConfig())
    assert count == 2, count
    assert [layer.training for layer in layers_of(learner.policy.model)] == [True, True]


def test_every_rank_recomputes_what_the_rank_with_the_least_memory_needs():
    run_ranks(f"from {__name__} import fit_where_rank_1_has_less_memory as f; f()", 2)


@pytest.mark.parametrize("aggregation", get_args(Aggregation))
def test_samples_that_do_not_teach_are_in_no_pass_and_in_no_denominator(ranks, aggregation):
    learner = learner_of(ranks, "qwen2", ModelConfig())
    learner.set_config(ObjectiveConfig(aggregation=aggregation, kl_coef=0.0), OptimizerConfig(), 1.0, 30)
    rows = sequences(9)
    mixed = [replace(s, teaches=n % 3 != 0) for n, s in enumerate(rows)]
    update, expected = learner.pack(mixed), learner.pack([s for s in mixed if s.teaches])
    assert update.denominators == expected.denominators
    assert [b.input_ids.tolist() for b in update.batches] == [b.input_ids.tolist() for b in expected.batches]
    nobody = learner.pack([replace(s, teaches=False) for s in rows])
    learner.backward(nobody, TokenSums.zero())
    assert float(learner.apply(0.0)) == 0.0


@pytest.mark.parametrize("aggregation", ["token_mean", "microbatch_mean"])
def test_samples_without_a_sampled_token_have_no_gradient_and_stop_nobody(ranks, aggregation):
    learner = learner_of(ranks, "qwen2", ModelConfig())
    learner.set_config(ObjectiveConfig(aggregation=aggregation), OptimizerConfig(), temperature=1.0)
    nothing = [np.zeros(len(s.response), dtype=bool) for s in sequences(3)]
    masked = [
        replace(s, response=replace(s.response, response_mask=m)) for s, m in zip(sequences(3), nothing, strict=True)
    ]
    learner.backward(learner.pack(masked), TokenSums.zero())
    assert float(learner.apply(0.0)) == 0.0


@pytest.mark.parametrize(("is_last", "reduce_each"), [(False, True), (True, False), (False, False)])
def test_gathered_weights_are_let_go_with_every_reduction(ranks, is_last, reduce_each):
    learner = learner_of(ranks, "llama", ModelConfig())
    accumulate(learner.policy, is_last, reduce_each)
    output = learner.policy(pack(sequences(3)), False, lambda hidden, *_, **__: hidden)
    output.sum().backward()
    sharded = {isinstance(p, DTensor) for p in layers_of(learner.policy.model).parameters()}
    assert sharded == {is_last or reduce_each}


def test_a_policy_of_shapes_alone_gets_memory_and_stays_tied(ranks):
    with torch.device("meta"):
        model = tiny_model("qwen2", "fastgrpo_padded")
    policy = shard(as_policy(model, ModelConfig(), 1.0), ranks.mesh, torch.float32)
    assert not any(p.is_meta for p in policy.parameters())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.slow
def test_compiled_layers_are_compiled_once_and_have_the_same_gradients(ranks):
    from torch._dynamo.utils import counters

    plain = learner_of(ranks, "qwen2", ModelConfig())
    compiled = learner_of(ranks, "qwen2", ModelConfig(compile=True))
    counters.clear()
    for count in (9, 5, 17):
        for expected, got in zip(gradients(plain, count), gradients(compiled, count), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_norm_that_is_not_finite_leaves_weights_and_moments_as_they_are(ranks, broken):
    learner = learner_of(ranks, "qwen2", ModelConfig())

    def update(spoil: float | None = None) -> float:
        learner.backward(learner.with_rollout_logprobs(learner.pack(sequences(9))), TokenSums.zero())
        if spoil is not None:
            learner.parameters[0].grad.to_local()[0, 0] = spoil
        return learner.apply(1e-2)

    def state() -> list[torch.Tensor]:
        moments = [v for s in learner.optimizer.state.values() for v in s.values()]
        local = [t.to_local() if hasattr(t, "to_local") else t for t in (*learner.parameters, *moments)]
        return [t.detach().clone() for t in local]

    first = state()
    update()
    before = state()
    assert any(not torch.equal(a, b) for a, b in zip(first, before, strict=False))
    assert not torch.isfinite(torch.tensor(update(broken)))
    for old, new in zip(before, state(), strict=True):
        assert torch.equal(old, new)
    update()
    assert any(not torch.equal(a, b) for a, b in zip(before, state(), strict=True))


def test_gradients_are_scaled_down_to_the_norm_and_never_up():
    for norm, expected in ((4.0, 1.0), (0.5, 0.5)):
        gradient = [torch.full((4,), norm / 2)]
        clip(gradient, torch.tensor(norm), 1.0)
        assert float(gradient[0].norm()) == pytest.approx(expected, rel=1e-5)


def test_the_learning_rate_rises_linearly_and_stays():
    settings = OptimizerConfig(learning_rate=1.0, warmup_steps=10)
    assert [learning_rate(settings, s) for s in (1, 5, 10, 11, 999)] == pytest.approx([0.1, 0.5, 1.0, 1.0, 1.0])
    assert learning_rate(OptimizerConfig(learning_rate=1.0, warmup_steps=0), 1) == 1.0
