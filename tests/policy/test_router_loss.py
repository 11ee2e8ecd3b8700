"""The loss that balances experts is transformers' own, over the response tokens of a whole update."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from fastgrpo.config import Config, ModelConfig, ObjectiveConfig, OptimizerConfig
from fastgrpo.models.routers import routers_of
from fastgrpo.policy.activations import recompute_first
from fastgrpo.policy.learner import Learner
from fastgrpo.policy.packing import SequenceCost
from fastgrpo.policy.policy import Policy
from fastgrpo.policy.sharding import shard
from fastgrpo.policy.token_sums import TokenSums
from fastgrpo.ranks import Ranks
from fastgrpo.recipe.validate import validate
from tests.policy.test_partition_invariance import responses
from tests.tiny import tiny_model


def gradients(
    ranks: Ranks,
    coef: float,
    num_recomputed: int = 0,
    tokens_per_microbatch: int = 80,
    attention: str = "fastgrpo_padded",
) -> dict:
    policy = Policy(tiny_model("qwen3_moe", attention), 1.0, 16)
    recompute_first(policy.model, num_recomputed)
    learner = Learner(
        shard(policy, ranks.mesh, torch.float32),
        ranks,
        SequenceCost(100.0, 1.0),
        ObjectiveConfig(router_aux_coef=coef),
        OptimizerConfig(tokens_per_microbatch=tokens_per_microbatch),
    )
    update = learner.with_rollout_logprobs(learner.pack(responses()))
    assert len(update.batches) > 1
    learner.backward(update, TokenSums.zero())
    return {n: p.grad.full_tensor().clone() for n, p in policy.model.named_parameters()}


def by_transformers() -> tuple[torch.Tensor, dict]:
    """Its loss of all responses as one batch, of router logits that its own forward passes give."""
    model, layers, mask = tiny_model("qwen3_moe", "eager"), [], []
    for sample in responses():
        tokens = np.concatenate([sample.prompt.prompt_ids, sample.response.response_ids])[:-1].astype(np.int64)
        layers.append(model(input_ids=torch.from_numpy(tokens)[None], output_router_logits=True).router_logits)
        mask += [0] * (len(sample.prompt.prompt_ids) - 1) + [1] * len(sample.response)
    logits = tuple(torch.cat(one) for one in zip(*layers, strict=True))
    loss = load_balancing_loss_func(logits, 4, 2, torch.tensor(mask)[None])
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("num_recomputed", "attention"),
    [(0, "fastgrpo_padded"), (1, "fastgrpo_padded"), (2, "fastgrpo_padded"), (0, "sdpa")],
)
def test_it_adds_the_gradient_of_transformers_own_loss(ranks, num_recomputed, attention):
    plain, balanced = gradients(ranks, 0.0), gradients(ranks, 3.0, num_recomputed, attention=attention)
    loss, expected = by_transformers()
    assert 2.0 < float(loss) < 8.0
    scale = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in plain.items():
        added = (balanced[name] - gradient) / 3.0
        wanted = expected.get(name, torch.zeros_like(added))
        assert float((added - wanted).abs().max()) < 1e-5 * scale + 1e-6 * float(gradient.abs().max()), name
    assert scale > 1e-3


def test_routers_are_watched_only_within_the_block():
    model = tiny_model("qwen3_moe", "eager")
    routers, ids = routers_of(model), torch.zeros(1, 5, dtype=torch.int64)
    with routers.watched() as seen:
        model(input_ids=ids)
    model(input_ids=ids)
    assert [tuple(one.shape) for one in seen] == [(5, 4), (5, 4)] and routers.num_chosen == 2


@pytest.mark.parametrize("architecture", ["qwen2", "deepseek_v3"])
def test_a_model_without_routers_or_without_such_a_loss_is_refused(architecture):
    with pytest.raises(ValueError, match=r"own loss, and it has none for a (Qwen2|DeepseekV3)ForCausalLM"):
        routers_of(tiny_model(architecture))


def test_compiled_layers_are_refused():
    config = Config(objective=ObjectiveConfig(router_aux_coef=0.1), model=ModelConfig(compile=True))
    with pytest.raises(ValueError, match=r"--objective\.router_aux_coef 0\.1 reads what routers compute"):
        validate(config, 1)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
