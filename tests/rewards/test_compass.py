import hashlib

import pytest

from fastgrpo.rewards import compass_accepts, compass_prompt
from fastgrpo.rewards.compass import TEMPLATE


def test_the_template_is_the_published_one_to_the_letter():
    published = "aee9c27520639ca543f0b5077164dc32c1976be0f16c87bee7055f3b7ba45e72"
    assert hashlib.sha256(TEMPLATE.encode()).hexdigest() == published


def test_question_answer_and_response_stand_in_their_places_unchanged():
    prompt = compass_prompt("What is {x}?", "{42}", "It is \\boxed{42}. {llm_response}")
    assert "<Original Question Begin>:\nWhat is {x}?\n<Original Question End>\n" in prompt
    assert "<Standard Answer Begin>:\n{42}\n<Standard Answer End>\n" in prompt
    assert "<Candidate's Answer Begin>: \nIt is \\boxed{42}. {llm_response}\n<Candidate's Answer End>\n" in prompt
    assert prompt.endswith("Judging the correctness of the candidate's answer:\n")
    assert "given with \\boxed{}, please ignore the \\boxed{}" in prompt


@pytest.mark.parametrize("reply, accepted", [("A", True), (" A\n", True), ("B", False), ("C", False), ("", False),
                                             ("A: CORRECT", False), ("CORRECT", False), ("a", False)])  # fmt: skip
def test_only_a_bare_a_is_a_yes(reply: str, accepted: bool):
    assert compass_accepts(reply) is accepted
