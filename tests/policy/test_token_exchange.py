"""Tokens go to the ranks that train on them."""

from fastgrpo.config import ParallelConfig
from tests.launched import run_ranks

NUM_RANKS = 3
CODE = """
from tests.policy.test_token_exchange import check_exchange
check_exchange()
"""


def sample(number: int, home: int | None, rank: int):
    """As a rank has it: with its tokens at home, and where it is said to have them everywhere."""
    import numpy as np

    from fastgrpo.types import Prompt, Response, ResponseElsewhere, Sample

    generator = np.random.default_rng(number)
    length = int(generator.integers(0, 40)) if number != 5 else 0
    mask = generator.random(length) < 0.7 if number % 3 == 0 else None
    whole = Response(
        response_ids=generator.integers(0, 2**31 - 1, length, dtype=np.int32),
        rollout_logprobs=generator.normal(size=length).astype(np.float32),
        finish_reason="length" if number % 2 else "stop",
        policy_version=number,
        mean_entropy=0.5,
        response_mask=mask,
    )
    about = ResponseElsewhere(length, whole.num_sampled_tokens, whole.finish_reason, whole.sampled_by, 0.5)
    prompt = Prompt.of_ids(np.full(2, number, np.int32), number)
    return Sample(prompt, whole if home in (None, rank) else about, home, advantage=number)


def check_exchange() -> None:
    import pytest
    import torch

    from fastgrpo.algorithm.scoring import RecipeError
    from fastgrpo.models.packed_batch import PackedBatch
    from fastgrpo.policy import token_exchange
    from fastgrpo.policy.packing import pack
    from fastgrpo.policy.token_exchange import with_tokens
    from fastgrpo.ranks import Ranks
    from fastgrpo.types import ResponseElsewhere

    ranks = Ranks.connect(torch.device("cpu"), ParallelConfig())
    token_exchange.ROUND_BYTES = 400  # of several rounds
    homes = [0, 1, 2, None, 2, 1, 0, 0, None, 2, 2, 1, 0, 1]
    samples = [sample(n, home, ranks.rank) for n, home in enumerate(homes)]
    whole = [sample(n, None, ranks.rank) for n in range(len(homes))]
    plans = [
        [[[0, 1], [2]], [[3, 4], [5, 6]], [[7], [8, 9, 10, 11, 12, 13]]],
        [[[4, 9, 2]], [[0, 6]], [[1, 5, 11]]],  # none is trained on where it is
        [[[0, 12], []], [[1], [13]], [[2], [10]]],  # all are
        [[list(range(14))], [[]], [[]]],  # one rank has it all
        [[[3], [8]], [[3], [8]], [[8], [3]]],
    ]
    for plan in plans:
        chosen = [[[samples[n] for n in batch] for batch in batches] for batches in plan]
        for batch, numbers in zip(with_tokens(chosen, ranks), plan[ranks.rank], strict=True):
            packed, expected = pack(batch), pack([whole[n] for n in numbers])
            for name in PackedBatch.__dataclass_fields__:
                ours, theirs = getattr(packed, name), getattr(expected, name)
                assert torch.equal(ours, theirs) if isinstance(theirs, torch.Tensor) else ours == theirs, name
    num_elsewhere = sum(isinstance(s.response, ResponseElsewhere) for s in samples)
    assert num_elsewhere == len([home for home in homes if home not in (None, ranks.rank)])
    assert with_tokens([[[]], [[]], [[]]], ranks) == [[]]
    other = [[[samples[1]]], [[samples[0]]], [[samples[5] if ranks.rank < 2 else samples[11]]]]
    with pytest.raises(RecipeError, match="rank 2 plans the step's samples otherwise than the first rank"):
        with_tokens(other, ranks)
    ranks.disconnect()


def test_every_rank_gets_the_tokens_that_it_trains_on_to_the_bit():
    run_ranks(CODE, NUM_RANKS)
