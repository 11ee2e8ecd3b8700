"""What the first rank does with groups that no step takes."""

from types import SimpleNamespace

import numpy as np
import torch

from fastgrpo.config import Config
from fastgrpo.rollout.prompts_in_order import PromptsInOrder
from fastgrpo.rollout.servers.rollouts import ServerRollouts
from fastgrpo.types import Prompt, Sampling


class Stream:
    def prompts_at(self, first, count):
        return [Prompt.of_ids(np.zeros(2, np.int32), position) for position in range(first, first + count)]


def test_what_is_put_back_is_cancelled_and_then_nobody_judges_it_any_more():
    done, sampling, prompts = [], Sampling(group_size=2, max_response_tokens=4), PromptsInOrder(Stream())
    pool = SimpleNamespace(
        submit=lambda groups, on_finished: done.append(("submit", [r.id for group in groups for r in group])),
        cancel=lambda ids: done.append(("cancel", ids)),
    )
    rollouts = ServerRollouts(
        pool, None, None, None, Config(), None, prompts, sampling, lambda: iter(()), torch.float32
    )
    rollouts.judging = SimpleNamespace(
        begin=None, forget=lambda positions, sampling: done.append(("forget", list(positions), sampling))
    )
    for prompt in prompts.take(2):
        rollouts.queue.start(prompt)
        rollouts._submit([rollouts._requests(prompt)])
    rollouts._forget(rollouts._put_back())
    # In this order: what is not cancelled may still come, and be judged.
    assert done == [("submit", [0, 1]), ("submit", [2, 3]), ("cancel", [0, 1, 2, 3]), ("forget", [0, 1], sampling)]
    assert prompts.put_back == [0, 1] and not rollouts.queue.started
