"""Chat templates as programs: each ends, and what it did is said."""

import multiprocessing
import time

import pytest

from fastgrpo.data import chat_template, encode
from fastgrpo.data.chat_template import Habits, TemplateFailed, render
from fastgrpo.types import Prompt
from tests.data.tokenizers import CHAT, tiny_tokenizer

CHATS = [[{"role": "user", "content": f"{n} one two"}] for n in range(2000)]
TEXT = "{{ messages[-1]['content'] }}"
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}"
LOOP += "{% endfor %}"


def test_texts_are_those_of_transformers():
    tokenizer = tiny_tokenizer(CHAT)
    texts, habits = render(tokenizer, CHATS)
    assert texts == tokenizer.apply_chat_template(CHATS, add_generation_prompt=True, tokenize=False)
    assert habits == Habits(reads_message=True, reads_history=True, opens_turn=True, is_dated=False, turn_end=" ")


@pytest.mark.parametrize(
    "template, says",
    [
        ("{{ raise_exception('needs a system message') }}", "raised TemplateError: needs a system message"),
        ("{{ messages[", r"raised TemplateSyntaxError in line 1: unexpected 'end of template'"),
        ("{{ messages[7]['content'].x }}", "raised UndefinedError"),
        ("{{ 1 / 0 }}", "raised ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "raised RecursionError"),
        ("{{ " + "(" * 5000, "raised RecursionError"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "raised SecurityError"),
        ("{{ 'a' * 10**10 }}", "took more than 1,024 MiB of memory"),
        ("{{ '%10000000000d' | format(1) }}", "took more than 1,024 MiB of memory"),
        ("{{ 'a' * (2**24 + 1) }}" + TEXT, "made a text of 16,777,"),
    ],
)
def test_a_template_that_makes_no_text_is_refused_in_its_own_words(template, says):
    with pytest.raises(TemplateFailed, match=says):
        render(tiny_tokenizer(template), CHATS[:3])


@pytest.mark.parametrize("template", [LOOP, "{{ 3 ** (3 ** 20) ** 9 }}"])
def test_a_template_that_does_not_end_is_ended(template, monkeypatch):
    monkeypatch.setattr(chat_template, "TEXT_S", 0.5)
    with pytest.raises(TemplateFailed, match="did not end within"):
        render(tiny_tokenizer(template), CHATS[:1])
    assert multiprocessing.active_children() == []


def test_the_row_on_which_a_template_fails_is_named(tmp_path):
    template = TEXT + "{% if '1977' in messages[0]['content'] %}{{ raise_exception('no year') }}{% endif %}"
    problems = [Prompt(10 * n, f"{n} one", "1") for n in range(2000)]
    tokenizer = tiny_tokenizer(template)
    tokenizer.name_or_path = str(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template)
    says = rf"{tmp_path}/chat_template\.jinja raised TemplateError: no year \(on the problem in row 19770, '1977 one'\)"
    with pytest.raises(ValueError, match=says):
        encode(problems, tokenizer, chat_template=True, max_prompt_tokens=100)


def test_the_day_and_chance_stand_still():
    template = TEXT + "{{ strftime_now('%d %b %Y %H:%M:%S') }} {{ range(10**4) | random }}"
    first, habits = render(tiny_tokenizer(template), CHATS[:2])
    assert habits.is_dated and first[0].startswith("0 one two26 Jul 2024 12:00:00 ")
    assert render(tiny_tokenizer(template), CHATS[:2])[0] == first


@pytest.mark.parametrize(
    "template, habits",
    [
        ("a constant", Habits(False, True, False, False)),
        ("[INST] " + TEXT + " [/INST]", Habits(True, True, False, False, " [/INST]")),
        (TEXT + "{% if add_generation_prompt %}:{% endif %}", Habits(True, True, True, False)),
        (TEXT + "{{ strftime_now('%Y') }}", Habits(True, True, False, True, "2024")),
        ("{{ lipsum(1) }}" + TEXT, Habits(True, True, False, True)),
        (TEXT + "{% if messages | length > 1 %}{{ 1 / 0 }}{% endif %}", Habits(True, True, False, False)),
    ],
)
def test_what_a_template_does_is_found_out(template, habits):
    assert render(tiny_tokenizer(template), CHATS[:1])[1] == habits


def test_nothing_that_the_process_changes_reaches_this_one():
    tokenizer = tiny_tokenizer("{{ strftime_now('%Y') }}" + TEXT)
    render(tokenizer, CHATS[:1])
    this_year = time.strftime("%Y")
    assert tokenizer.apply_chat_template(CHATS[0], tokenize=False) == f"{this_year}0 one two"
