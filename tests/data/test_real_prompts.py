"""Prompts by the real tokenizers of four families, token for token."""

import copy
import json

import pytest

from fastgrpo.data import encode, load_problems
from fastgrpo.data.schemas import verl_row
from fastgrpo.recipe.find import find_recipe
from fastgrpo.recipe.recipe import load_recipe
from fastgrpo.types import Prompt
from tests.real_tokenizers import FAMILIES, LLAMA, QWEN, bare, loaded, needs_tokenizers, of_each_family
from tests.recipes.sources.simplerl_zoo import BOXED, MODELS, SIMPLE

pytestmark = [pytest.mark.slow, needs_tokenizers]

TEXTS = [
    "What is 1+1?",
    "  Solve $x^2 = 2$ for x.\n",
    "\n\t\nFind \\frac{a}{b} , if a = 3 . 5 !\r\n\tShow 1234567.",
    "Ist 7 größer als 6? 中文、ひらがな 👩‍🔬 e\u0301 \u200b\ufeff ٣",
    "if x:\n    return '''it's'''\n\n\n\n" + " " * 40 + "end",
    "x" * 3000,
]
SYSTEM = (("system", "You are a helpful assistant."),)
EXAMPLE = (("user", "What is 2+2?"), ("assistant", "It is \\boxed{4}."))
HISTORIES = {"a question": (), "a system message": SYSTEM, "a solved example": EXAMPLE, "both": SYSTEM + EXAMPLE}


def encoded(tokenizer, texts, history=(), **how):
    """(ids of each text, what was said)"""
    said = []
    how = {"chat_template": True, "max_prompt_tokens": 10**6, "say": said.append} | how
    problems = [Prompt(n, text, "", history=history) for n, text in enumerate(texts)]
    return [p.prompt_ids.tolist() for p in encode(problems, tokenizer, **how)], said


@of_each_family
@pytest.mark.parametrize("kind", HISTORIES)
def test_chats_have_the_ids_that_transformers_gives_them(family, kind):
    ids, _ = encoded(loaded(family), TEXTS, HISTORIES[kind])
    chats = [[{"role": r, "content": c} for r, c in (*HISTORIES[kind], ("user", text))] for text in TEXTS]
    theirs = loaded(family).apply_chat_template(chats, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert ids == theirs


@of_each_family
def test_a_question_has_the_ids_of_the_published_text(family):
    ids, _ = encoded(loaded(family), TEXTS)
    assert ids == [bare(family).encode(family.text(text), add_special_tokens=False).ids for text in TEXTS]


@of_each_family
@pytest.mark.parametrize("special_tokens", [True, False])
def test_plain_texts_have_the_ids_of_the_tokenizers_file(family, special_tokens):
    ids, said = encoded(loaded(family), TEXTS, chat_template=False, special_tokens=special_tokens)
    begin = [family.begin] if special_tokens and family.begin is not None else []
    assert ids == [begin + bare(family).encode(text, add_special_tokens=False).ids for text in TEXTS] and said == []


@of_each_family
def test_a_prompt_has_the_begin_token_once_or_never(family):
    chats, _ = encoded(loaded(family), TEXTS, HISTORIES["both"])
    plain, _ = encoded(loaded(family), TEXTS, chat_template=False)
    bare_texts, _ = encoded(loaded(family), TEXTS, chat_template=False, special_tokens=False)
    once = int(family.begin is not None)
    assert {ids.count(family.begin) for ids in chats + plain} == {once}
    assert {ids.count(family.begin) for ids in bare_texts} == {0}
    assert not once or {ids[0] for ids in chats + plain} == {family.begin}


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.begin is not None], ids=str)
def test_a_text_with_the_begin_token_in_it_does_not_get_a_second_one(family):
    texts = [loaded(family).bos_token + text for text in TEXTS[:2]]
    with pytest.raises(ValueError, match=r"2 of 2 prompts begin with '<.*' twice: .*--data\.no_special_tokens"):
        encoded(loaded(family), texts, chat_template=False)
    ids, _ = encoded(loaded(family), texts, chat_template=False, special_tokens=False)
    assert [i.count(family.begin) for i in ids] == [1, 1]


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.begin is not None], ids=str)
def test_a_template_without_the_begin_token_is_said(family):
    tokenizer = copy.copy(loaded(family))
    tokenizer.chat_template = tokenizer.chat_template.replace("{{bos_token}}", "").replace("{{ bos_token }}", "")
    tokenizer.chat_template = tokenizer.chat_template.replace("bos_token + ", "")
    _, said = encoded(tokenizer, TEXTS)
    assert f"6 prompts begin without {tokenizer.bos_token!r}" in said[-1]


@of_each_family
def test_white_space_that_a_template_leaves_out_is_said_and_nothing_else_is(family):
    _, said = encoded(loaded(family), TEXTS, HISTORIES["both"])
    assert ["leaves out white space around 2 problems, as row 1" in line for line in said] == [True] * family.strips


@of_each_family
def test_a_role_in_a_problems_text_is_said(family):
    role = {"qwen3": "<|im_start|>", "llama3_1": "<|eot_id|>", "gemma3": "<end_of_turn>", "deepseek_v3": "<｜User｜>"}
    _, said = encoded(loaded(family), ["one", f"two {role[family.name]} three"])
    assert ["1 problems hold control tokens" in line and role[family.name] in line for line in said] == [True]


# --- the recipes of SimpleRL-Zoo --------------------------------------------------------------------------------------

OF_FAMILY = {"qwen2": QWEN, "llama": LLAMA}  # Qwen3 has Qwen2.5's vocabulary, and more control tokens
NAMES = [name for name, model in MODELS.items() if model.path.startswith(("Qwen/", "meta-llama/"))]
QUESTIONS = ["Question", "Answer", "Problem"]
ROLES = ["<|im_end|>", "<|endoftext|>", "user", "assistant", "User", "Assistant", "<|im_start|>", "system", "```"]
WORDS = {SIMPLE: QUESTIONS, BOXED: ROLES}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", ["whole", "bare"])
def test_prompts_of_simplerl_zoo_are_the_published_text(name, rows, tmp_path):
    config, model = load_recipe(find_recipe(f"simplerl_zoo_{name}")).config, MODELS[name]
    family = OF_FAMILY[model.family]
    texts = [text.strip() for text in TEXTS]  # white space around a problem is nobody's
    published = [model.template.replace("{problem}", text) for text in texts]
    data = tmp_path / "train.jsonl"
    given = published if rows == "whole" else texts
    data.write_text("".join(json.dumps(verl_row(text, "1", "")) + "\n" for text in given))
    problems = load_problems(str(data), config.data.suffix, config.data.template)
    ids, _ = encoded(
        loaded(family),
        [p.text for p in problems],
        chat_template=config.data.chat_template,
        special_tokens=config.data.special_tokens,
    )
    assert ids == [bare(family).encode(text, add_special_tokens=False).ids for text in published]


def test_the_boxed_prompt_is_qwens_own_chat():
    published = [BOXED.replace("{problem}", text) for text in TEXTS]
    request = "\nPlease reason step by step, and put your final answer within \\boxed{}."
    ids, _ = encoded(loaded(QWEN), [text + request for text in TEXTS], SYSTEM)
    assert ids == [bare(QWEN).encode(text, add_special_tokens=False).ids for text in published]


@pytest.mark.parametrize("name", NAMES)
def test_stop_tokens_of_simplerl_zoo_are_the_words_that_open_another_problem(name):
    config, model = load_recipe(find_recipe(f"simplerl_zoo_{name}")).config, MODELS[name]
    tokens = [bare(OF_FAMILY[model.family]).id_to_token(n) for n in config.rollout.stop_token_ids]
    assert tokens == WORDS[model.template][: len(tokens)] and len(tokens) == len(model.stop)
