import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgrpo.packing import SequenceCost, pack, plan_microbatches, split_updates
from tests.tiny import sequences

COST = SequenceCost(per_token=100.0, per_token_pair=1.0)
LENGTHS = st.lists(st.integers(1, 64), min_size=1, max_size=60)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 5), st.integers(64, 300))
def test_a_plan_holds_every_sequence_once_within_the_budget_and_equally_often_on_all_ranks(lengths, ranks, budget):
    plan = plan_microbatches(lengths, ranks, budget, COST)
    assert sorted(i for rank in plan for batch in rank for i in batch) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in batch) <= budget for rank in plan for batch in rank)
    assert len({len(rank) for rank in plan}) == 1 and len(plan) == ranks


@settings(deadline=None)
@given(st.lists(st.integers(1, 64), min_size=40, max_size=200), st.integers(2, 4))
def test_ranks_differ_in_flops_by_less_than_two_of_the_costliest_sequence(lengths, ranks):
    plan = plan_microbatches(lengths, ranks, 256, COST)
    flops = [sum(COST.flops(lengths[i]) for batch in rank for i in batch) for rank in plan]
    assert max(flops) - min(flops) <= 2 * COST.flops(max(lengths)) * max(1, len(plan[0]) / 2)


def test_attention_counts_in_the_balance():
    """One long sequence costs more than short ones of the same tokens, so those must not join it."""
    attention_only = SequenceCost(per_token=0.0, per_token_pair=1.0)
    plan = plan_microbatches([32, *[4] * 8], 2, 64, attention_only)
    assert plan == [[[0]], [list(range(1, 9))]]


def test_a_sequence_over_the_budget_is_refused_with_the_numbers():
    with pytest.raises(ValueError, match="65 tokens does not fit into a micro-batch of 64"):
        plan_microbatches([3, 65], 1, 64, COST)


def test_targets_follow_their_inputs_and_only_sampled_ones_carry_loss():
    rows = sequences(5)
    batch = pack(rows)
    starts = batch.cu_seqlens.tolist()
    for k, row in enumerate(rows):
        part = slice(starts[k], starts[k + 1])
        whole = np.concatenate([row.prompt_ids, row.response.response_ids])
        assert batch.input_ids[part].tolist() == whole[:-1].tolist()
        assert batch.target_ids[part].tolist() == whole[1:].tolist()
        assert batch.position_ids[part].tolist() == list(range(len(whole) - 1))
        mask = batch.response_mask[part]
        assert batch.target_ids[part][mask].tolist() == row.response.response_ids.tolist()
        assert batch.rollout_logprobs[part][mask].tolist() == row.response.rollout_logprobs.tolist()
        assert batch.rollout_logprobs[part][~mask].abs().sum() == 0
        assert (batch.advantages[part] == np.float32(row.advantage)).all()
    assert batch.num_loss_tokens == sum(len(r.response) for r in rows)
    assert batch.max_seqlen == max(r.num_input_tokens for r in rows)


def test_a_rank_without_sequences_gets_tokens_without_loss():
    batch = pack([])
    assert batch.num_loss_tokens == 0 and len(batch.input_ids) == 2


def test_updates_are_contiguous_so_that_groups_stay_whole():
    rows = sequences(8)
    assert [len(u) for u in split_updates(rows, 4)] == [2, 2, 2, 2]
    assert [r for u in split_updates(rows, 4) for r in u] == rows
