"""End tokens, against those of the tokenizer and of the chat template."""

import pytest

from fastgrpo.data.stop_tokens import NO_STOPS, StopTokens, end_token_note, require_ends, turn_end_note
from tests.data.tokenizers import tiny_tokenizer

STOPS = StopTokens((5, 7), "--stop")


def test_an_end_token_that_ends_no_response_is_said():
    tokenizer = tiny_tokenizer()
    assert end_token_note(tokenizer, StopTokens((1, 5))) == end_token_note(tokenizer, NO_STOPS) == ""
    note = end_token_note(tokenizer, STOPS)
    assert note.startswith("note: the tokenizer's end token '<eos>' (1) ends no response") and "name 5, 7" in note
    assert note.endswith("--stop 1 makes it one")
    tokenizer.eos_token = None
    assert end_token_note(tokenizer, STOPS) == ""


@pytest.mark.parametrize(
    "turn_end, says",
    [
        (" <user> two", "'<user>' (3), which ends no response: --stop 3 makes it one"),
        ("two <user>", "'two <user>', which is no token of its own"),
        ("one <user>", ""),  # a word that ends responses
        (" <eos>\n", ""),  # said of the tokenizer already
        (" \n", ""),
        ("", ""),
    ],
)
def test_what_ends_a_turn_and_no_response_is_said(turn_end, says):
    warning = turn_end_note(tiny_tokenizer(), STOPS, turn_end, "X")
    assert says in warning and bool(says) == warning.startswith("warning: the chat template X ends the assistant's")
    assert turn_end_note(tiny_tokenizer(), NO_STOPS, turn_end, "X") == ""


def test_a_model_must_have_a_row_for_one_of_its_end_tokens():
    assert require_ends(STOPS, 8, "M") == ""
    assert require_ends(STOPS, 7, "M") == "note: 7 ends no response: M has 7 rows, and never samples it"
    with pytest.raises(ValueError, match=r"no response of M could end: the end tokens are 5, 7, .*or give --stop"):
        require_ends(STOPS, 5, "M")
    with pytest.raises(ValueError, match=r"M names no end token: give --rollout\.stop_token_ids"):
        require_ends(NO_STOPS, 5, "M")
