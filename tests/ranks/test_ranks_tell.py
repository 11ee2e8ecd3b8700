"""What ranks tell each other."""

import dataclasses

from tests.launched import run_ranks

CODE = """
from tests.ranks.test_ranks_tell import check
check()
"""


@dataclasses.dataclass
class Word:
    text: str
    number: float = 0.0


class Executed:
    def __reduce__(self):
        return print, ("executed",)


def check() -> None:
    import numpy as np
    import pytest
    import torch

    from fastgrpo.config import ParallelConfig
    from fastgrpo.ranks import Ranks

    ranks = Ranks.connect(torch.device("cpu"), ParallelConfig())
    assert ranks.gather(list(range(ranks.rank))) == [0, 0, 1]
    assert ranks.gather([]) == []
    long = "x" * (10_000 * ranks.rank)
    assert ranks.gather([Word(long, ranks.rank)], [Word])[2] == Word("x" * 20_000, 2)
    assert ranks.from_first(Word(long, ranks.rank), [Word]) == Word("", 0)
    assert ranks.from_first(None) is None
    told = ranks.to_first([Word(long, ranks.rank)] * ranks.rank, [Word])
    assert told == ([] if ranks.rank else [Word("x" * 10_000, 1), Word("x" * 20_000, 2), Word("x" * 20_000, 2)])
    parts = [np.full(rank + 1, 10 * ranks.rank + rank, np.int32) for rank in range(3)]
    received = ranks.exchange(parts, [ranks.rank + 1] * 3)
    assert [part.tolist() for part in received] == [[10 * k + ranks.rank] * (ranks.rank + 1) for k in range(3)]
    with pytest.raises(TypeError, match="plain objects"):
        ranks.gather([Executed()])
    with pytest.raises(ValueError, match="Word"):
        ranks.gather([Word("unknown here")])
    ranks.disconnect()


def test_ranks_tell_each_other_what_the_codec_knows_and_nothing_that_is_executed():
    run_ranks(CODE, 3)
