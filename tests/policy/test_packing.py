from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgrpo.policy.packing import SequenceCost, pack, plan_microbatches, split_updates
from fastgrpo.types import Prompt, Response, Sample
from tests.tiny import sequences

COST = SequenceCost(per_token=100.0, per_token_pair=1.0)


def sequence(num_tokens: int, prompt: int = 0) -> Sample:
    """Of two prompt tokens and as many response tokens as make `num_tokens` inputs."""
    ids = np.zeros(num_tokens - 1, dtype=np.int32)
    return Sample(
        Prompt.of_ids(np.array([prompt, prompt], dtype=np.int32)),
        Response(ids, ids.astype(np.float32), "stop", 0),
        advantage=1.0,
    )


def num_rows(sequences: list[Sample], share_prompts: bool) -> int:
    batch = pack(sequences, share_prompts=share_prompts)
    return len(batch.input_ids if batch.shared is None else batch.shared.select)


ROWS = st.lists(st.builds(sequence, st.integers(2, 64), st.integers(0, 5)), min_size=1, max_size=60)


@settings(deadline=None)
@given(ROWS, st.integers(1, 5), st.integers(64, 300), st.booleans())
def test_a_plan_holds_every_sequence_once_within_the_budget_and_equally_often_on_all_ranks(rows, ranks, budget, share):
    plan = plan_microbatches(rows, ranks, budget, COST, share_prompts=share)
    assert sorted(id(s) for rank in plan for batch in rank for s in batch) == sorted(map(id, rows))
    assert all(num_rows(batch, share) <= budget for rank in plan for batch in rank if batch)
    assert len({len(rank) for rank in plan}) == 1 and len(plan) == ranks


@settings(deadline=None)
@given(st.lists(st.integers(2, 64), min_size=40, max_size=200), st.integers(2, 4))
def test_ranks_differ_in_flops_by_less_than_the_costliest_sequence_a_turn(lengths, ranks):
    plan = plan_microbatches([sequence(n) for n in lengths], ranks, 256, COST)
    flops = [sum(COST.flops(s.num_input_tokens) for batch in rank for s in batch) for rank in plan]
    assert max(flops) - min(flops) <= COST.flops(max(lengths)) * max(2, len(plan[0]))


def test_attention_counts_in_the_balance():
    """One long sequence costs more than short ones of the same tokens, so those must not join it."""
    attention_only = SequenceCost(per_token=0.0, per_token_pair=1.0)
    rows = [sequence(32), *(sequence(4) for _ in range(8))]
    plan = plan_microbatches(rows, 2, 64, attention_only)
    assert [[[s.num_input_tokens for s in batch] for batch in rank] for rank in plan] == [[[32]], [[4] * 8]]


def test_a_sequence_over_the_budget_is_refused_with_the_numbers():
    with pytest.raises(ValueError, match="65 tokens does not fit into a micro-batch of 64"):
        plan_microbatches([sequence(3), sequence(65)], 1, 64, COST)


def test_no_sequence_at_all_is_one_empty_micro_batch_on_every_rank():
    assert plan_microbatches([], 2, 64, COST) == [[[]], [[]]]


def test_a_shared_prompt_stands_once_and_its_responses_see_it():
    """Every packed token is expanded from a row with the same token at the same place."""
    prompt = np.arange(1, 6, dtype=np.int32)
    rows = [Sample(Prompt.of_ids(prompt), r.response, advantage=r.advantage) for r in sequences(4)] + sequences(
        2, seed=9
    )
    batch = pack(rows, share_prompts=True)
    assert batch.shared is not None
    assert len(batch.shared.select) == len(batch.input_ids) - 3 * len(prompt)
    for name in ("input_ids", "position_ids"):
        values = getattr(batch, name)
        assert values[batch.shared.select][batch.shared.expand].tolist() == values.tolist()
    assert pack(sequences(3), share_prompts=True).shared is None


def test_targets_follow_their_inputs_and_only_sampled_ones_carry_loss():
    rows = sequences(5)
    batch = pack(rows)
    starts = batch.cu_seqlens.tolist()
    for k, row in enumerate(rows):
        part = slice(starts[k], starts[k + 1])
        whole = np.concatenate([row.prompt.prompt_ids, row.response.response_ids])
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


def test_tokens_that_the_policy_did_not_sample_are_read_and_carry_no_loss():
    rows = sequences(5)
    masks = [np.arange(len(r.response)) % 2 == 1 for r in rows]
    masked = [replace(r, response=replace(r.response, response_mask=m)) for r, m in zip(rows, masks, strict=True)]
    whole, batch, kept = pack(rows), pack(masked), np.concatenate(masks)
    assert (
        batch.input_ids.tolist() == whole.input_ids.tolist()
        and batch.position_ids.tolist() == whole.position_ids.tolist()
    )
    assert batch.response_rows.tolist() == whole.response_rows[kept].tolist()
    assert batch.num_loss_tokens == kept.sum() == sum(r.response.num_sampled_tokens for r in masked)
    assert batch.cu_responses.diff().tolist() == [int(m.sum()) for m in masks]
    assert (
        batch.at_responses(batch.rollout_logprobs).tolist() == whole.at_responses(whole.rollout_logprobs)[kept].tolist()
    )
    assert batch.rollout_logprobs[~batch.response_mask].abs().sum() == 0


def test_a_rank_without_sequences_gets_tokens_without_loss():
    batch = pack([])
    assert batch.num_loss_tokens == 0 and len(batch.input_ids) == 2


def test_updates_are_contiguous_so_that_groups_stay_whole():
    rows = sequences(8)
    assert [len(u) for u in split_updates(rows, 4, 1)] == [2, 2, 2, 2]
    assert [r for u in split_updates(rows, 4, 1) for r in u] == rows
