"""A wrapper of a text model, as Gemma 3 is from 4B on, trained as text."""

import pytest
import torch
from transformers import AutoConfig

from fastgrpo.config import ModelConfig, ObjectiveConfig, OptimizerConfig, ParallelConfig
from fastgrpo.models.load import check_model, set_attention
from fastgrpo.models.tiny import tiny_config, tiny_model
from fastgrpo.policy.learner import Learner
from fastgrpo.policy.policy import as_policy, sequence_cost
from fastgrpo.policy.sharding import full_weights, shard
from fastgrpo.policy.token_sums import TokenSums
from fastgrpo.ranks import Ranks
from tests.launched import run_ranks
from tests.tiny import sequences


def test_its_configuration_is_checked_by_the_text_in_it(tmp_path):
    tiny_config(AutoConfig.for_model("gemma3")).save_pretrained(tmp_path)
    assert check_model(ModelConfig(path=str(tmp_path)), num_rows_needed=64, longest_sequence=10) > 0
    with pytest.raises(ValueError, match="has ids up to 64, its model only 64 rows"):
        check_model(ModelConfig(path=str(tmp_path)), num_rows_needed=65, longest_sequence=10)


def update(ranks: Ranks) -> None:
    """Text learns, all else stays, and every weight has its name in the export."""
    torch.manual_seed(0)
    model = tiny_model(tiny_config(AutoConfig.for_model("gemma3")))
    set_attention(model, "fastgrpo_padded")
    names = [name for name, _ in model.named_parameters()]
    policy = shard(as_policy(model, ModelConfig(), 1.0), ranks.mesh, torch.float32)
    learner = Learner(policy, ranks, sequence_cost(model), ObjectiveConfig(), OptimizerConfig())
    before = {name: value.clone() for name, value in full_weights(policy)}
    learner.backward(learner.with_rollout_logprobs(learner.pack(sequences(9))), TokenSums.zero())
    assert 0 < learner.apply(1e-3) < float("inf")
    after = dict(full_weights(policy))
    assert list(after) == names
    changed = {name for name in names if not torch.equal(before[name], after[name])}
    assert changed == {name for name in names if "language_model" in name}
    assert len(changed) < len(names)


def test_text_learns_and_all_else_stays():
    ranks = Ranks.connect(torch.device("cpu"), ParallelConfig(timeout_s=60))
    try:
        update(ranks)
    finally:
        torch.distributed.destroy_process_group()


def on_two_ranks() -> None:
    ranks = Ranks.connect(torch.device("cpu"), ParallelConfig(timeout_s=60))
    update(ranks)
    ranks.disconnect()


@pytest.mark.slow
def test_also_where_it_is_sharded():
    run_ranks("from tests.models.test_multimodal import on_two_ranks; on_two_ranks()", 2)
