"""Prompts that may not be what the user means."""

import pytest

from fastgrpo.data import encode
from fastgrpo.types import Prompt
from tests.data.tokenizers import CHAT, tiny_tokenizer

PROBLEMS = [Prompt(3, "one two", "1"), Prompt(4, "one two three", "2")]


def encoded(problems, tokenizer, **how):
    """(token ids, what was said)"""
    said = []
    how = {"chat_template": True, "max_prompt_tokens": 100, "say": said.append} | how
    return [p.prompt_ids.tolist() for p in encode(problems, tokenizer, **how)], said


def test_messages_before_the_question_are_rendered():
    problem = Prompt(0, "one", "1", history=(("system", "two"), ("user", "three"), ("assistant", "?")))
    ids, said = encoded([problem], tiny_tokenizer(CHAT))
    assert ids == [[0, 9, 6, 3, 7, 4, 8, 3, 5, 4]] and said == []
    with pytest.raises(ValueError, match=r"row 0 follows other messages \(system\), which only a chat template"):
        encoded([problem], tiny_tokenizer(), chat_template=False)


def test_a_begin_token_twice_is_refused_where_a_setting_mends_it_and_said_where_none_does():
    problems = [Prompt(0, "<bos> one", "1"), Prompt(1, "two", "2")]
    with pytest.raises(ValueError, match=r"1 of 2 prompts begin with '<bos>' twice: .*--data\.no_special_tokens"):
        encoded(problems, tiny_tokenizer(), chat_template=False)
    ids, _ = encoded(problems[:1], tiny_tokenizer(), chat_template=False, special_tokens=False)
    assert ids == [[0, 5]]
    ids, said = encoded(PROBLEMS, tiny_tokenizer("{{ bos_token }} " + CHAT))
    assert ids[0][:2] == [0, 0] and "2 prompts begin with '<bos>' twice" in said[0]


def test_a_template_that_leaves_the_message_out_is_refused():
    with pytest.raises(ValueError, match="writes the same prompt for different problems"):
        encoded(PROBLEMS, tiny_tokenizer("one two {% if add_generation_prompt %}?{% endif %}"))


def test_a_template_that_leaves_the_system_message_out_is_refused():
    last = "<user> {{ messages[-1]['content'] }} {% if add_generation_prompt %}<assistant>{% endif %}"
    problems = [PROBLEMS[0], Prompt(5, "three", "1", history=(("system", "two"),))]
    with pytest.raises(ValueError, match="leaves out the messages before the question"):
        encoded(problems, tiny_tokenizer(last))
    assert len(encoded(PROBLEMS, tiny_tokenizer(last))[0]) == 2


def test_a_template_that_cuts_the_message_is_refused_with_the_rows():
    template = "{{ messages[0]['content'][:7] }}{% if add_generation_prompt %} ?{% endif %}"
    with pytest.raises(ValueError, match=r"rows 3 and 4 differ and have the same prompt, which ends in 'one two \?'"):
        encoded(PROBLEMS, tiny_tokenizer(template))


def test_problems_that_differ_in_white_space_may_have_one_prompt():
    template = CHAT.replace("m['content']", "m['content'] | trim")
    ids, said = encoded([Prompt(0, "one  two", "1"), Prompt(1, "one  two ", "2")], tiny_tokenizer(template))
    assert ids[0] == ids[1] and said == []


def test_a_template_that_opens_no_turn_is_said_with_what_prompts_end_in():
    _, said = encoded(PROBLEMS, tiny_tokenizer("{{ bos_token }}{{ messages[0]['content'] }} <eos>"))
    assert len(said) == 1 and "nothing to open the assistant's turn" in said[0] and "'<bos>one two <eos>'" in said[0]


def test_a_template_with_the_date_is_said_once():
    _, said = encoded(PROBLEMS, tiny_tokenizer(CHAT + "{{ strftime_now('%Y') }}"))
    assert len(said) == 1 and "writes the date or draws at random; for it, every day is 26 July 2024" in said[0]


@pytest.mark.parametrize("chat", [True, False])
def test_control_tokens_in_a_problem_are_counted_and_said_and_those_of_the_run_are_not(chat):
    template = "<user> {problem} <assistant>"
    texts = ["one", "two <eos> <eos>", "three <user> ?", "1 <unknown> 2"]
    problems = [Prompt(n, template.replace("{problem}", text), "1") for n, text in enumerate(texts)]
    _, said = encoded(problems, tiny_tokenizer(CHAT), chat_template=chat, template=template)
    [note] = said
    assert note.startswith("note: 2 problems hold control tokens of the tokenizer in their text, as row 1 '<eos>'")


def test_a_tokenizer_that_does_not_know_the_letters_is_refused_with_the_rows():
    problems = [Prompt(0, "one", "1"), Prompt(1, "yi", "2"), Prompt(2, "er", "3")]  # two words that it has no token for
    with pytest.raises(ValueError, match=r"rows 1 and 2 differ and .*: the tokenizer .* has the same tokens for both"):
        encoded(problems, tiny_tokenizer(), chat_template=False, special_tokens=False)
