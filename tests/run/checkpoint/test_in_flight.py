"""Responses that no step has taken yet come back as they were; another thing in their place is refused."""

import numpy as np
import pytest

from fastgrpo.codec import encode
from fastgrpo.run.checkpoint.in_flight import ROLLOUTS, read_rollouts, save_rollouts
from fastgrpo.types import Prompt, Response

LOGPROBS = np.array([-0.5, -np.inf], dtype=np.float32)
RESPONSE = Response(np.array([3, 7], np.int32), LOGPROBS, "length", 4, 0.25, ((1, 5),), np.array([True, False]))
STATE = {
    "next_position": 9,
    "put_back": [3],
    "under_way": [(4, 1, False, {0: RESPONSE, 2: RESPONSE}), (5, 1, True, {})],
}


def test_what_is_in_flight_comes_back(tmp_path):
    save_rollouts(tmp_path, STATE)
    assert repr(read_rollouts(tmp_path)) == repr(STATE)


def test_an_engine_in_the_trainers_process_has_nothing_in_flight(tmp_path):
    save_rollouts(tmp_path, {"next_position": 9, "put_back": []})
    assert read_rollouts(tmp_path) == {"next_position": 9, "put_back": []}


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ([], "does not hold next_position"),
        ({"next_position": 1}, "does not hold next_position"),
        ({**STATE, "more": 1}, "does not hold next_position"),
        ({**STATE, "next_position": "9"}, "next_position must be"),
        ({**STATE, "put_back": [None]}, "put_back must be"),
        ({**STATE, "under_way": [(4, 1, False, {"0": RESPONSE})]}, "under_way must be"),
        ({**STATE, "under_way": [(4, 1, False, {0: Prompt(1, "", "")})]}, "a 'Prompt' came, and only Response may"),
        ({**STATE, "under_way": [(4, 1, False)]}, "under_way must be"),
    ],
)
def test_another_thing_is_refused(tmp_path, state, says):
    (tmp_path / ROLLOUTS).write_bytes(encode(state))
    with pytest.raises(ValueError, match=says):
        read_rollouts(tmp_path)
