"""How a recipe words its prompts: templates, difficulties, statements, the order of the file."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from fastgrpo_recipes import dapo_qwen2_5_32b, questa_nemotron_1_5b
from tokenizers.processors import TemplateProcessing

from fastgrpo.config import DataConfig
from fastgrpo.data import PromptStream, encode, load_problems
from fastgrpo.data.instructions import SIMPLERL_TEMPLATES, unwrap_template
from fastgrpo.data.schemas import generation_row, solution_text, verl_row
from fastgrpo.recipe.shrink import make_tokenizer
from fastgrpo.types import Prompt

DATA = Path(__file__).parents[3] / "shared" / "data" / "train"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}")


def rows_at(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("name", SIMPLERL_TEMPLATES)
def test_a_row_in_its_template_and_a_bare_one_make_the_same_prompt(name, tmp_path):
    template = SIMPLERL_TEMPLATES[name]
    whole = rows_at(tmp_path / "whole.jsonl", verl_row(template.replace("{problem}", "What is 1+1?"), "2", ""))
    bare = rows_at(tmp_path / "bare.jsonl", verl_row("What is 1+1?", "2", ""))
    prompts = [load_problems(source, "unused", template).problems for source in (whole, bare)]
    assert prompts[0] == prompts[1] and prompts[0][0].text == template.replace("{problem}", "What is 1+1?")


def test_a_text_that_only_begins_like_the_template_stays():
    assert unwrap_template("Question:\nWhat?", SIMPLERL_TEMPLATES["simple"]) == "Question:\nWhat?"
    assert unwrap_template("What?", "") == "What?"
    assert unwrap_template("Q: What? ", "Q: {problem}") == "What? "


def test_braces_of_a_problem_are_no_fields_of_the_template(tmp_path):
    source = rows_at(tmp_path / "rows.jsonl", verl_row("Is {x} in {1, 2}?", "2", ""))
    assert load_problems(source, "", "Q: {problem}\nA:").problems[0].text == "Q: Is {x} in {1, 2}?\nA:"


def test_special_tokens_are_left_out_where_a_recipe_says_so():
    tokenizer = make_tokenizer()
    begins_with_end = TemplateProcessing(single="<end> $A", special_tokens=[("<end>", tokenizer.eos_token_id)])
    tokenizer.backend_tokenizer.post_processor = begins_with_end
    texts = [
        tokenizer.decode(
            encode([Prompt(0, "ab", "1")], tokenizer, chat_template=False, max_prompt_tokens=9, **said)[0].prompt_ids
        )
        for said in ({}, {"special_tokens": False})
    ]
    assert texts == ["<end>ab", "ab"]


@needs_data
@pytest.mark.parametrize(
    "levels, with_gsm8k, expected", [((1,), True, 8431), ((1, 2, 3, 4), False, 8505), ((3, 4, 5), False, 8890)]
)
def test_the_buckets_of_simplerl_zoo_have_their_rows(levels, with_gsm8k, expected, tmp_path):
    """7,473 of GSM8K with level 1, levels 1 to 4, levels 3 to 5 of 12,000 problems; rows without an answer and
    problems that come twice are left out and counted."""
    shutil.copy(DATA / "math_12k_levels.parquet", tmp_path / "math.parquet")
    found = load_problems(str(tmp_path), "", levels=levels)
    if with_gsm8k:
        gsm8k = load_problems(str(DATA / "gsm8k.jsonl"), "", levels=levels)  # has no levels: all of it stays
        assert gsm8k.num_unwanted == 0
    given = pq.read_table(tmp_path / "math.parquet").column("level").to_pylist()
    in_levels = sum(int(str(level).removeprefix("Level ")) in levels for level in given)
    assert in_levels + (gsm8k.num_rows if with_gsm8k else 0) == expected
    assert {p.level for p in found} == set(levels)
    assert found.num_rows == len(found) + found.num_duplicates + found.num_unanswered + found.num_unwanted
    assert in_levels - len(found) <= 60


def test_a_hint_is_the_beginning_of_the_solution_by_characters():
    problem = Prompt(0, "What is 6*7?", "42", solution="\n\nSix sevens are 42.")
    half = questa_nemotron_1_5b.with_hint(problem, DataConfig(hint_percent=50))
    assert half == "What is 6*7?\n\n## Hint.\n\nSix seve"  # 10 of 20 characters
    assert questa_nemotron_1_5b.with_hint(problem, DataConfig(hint_percent=25)) == "What is 6*7?\n\n"  # 5 are too few
    assert questa_nemotron_1_5b.with_hint(problem, DataConfig(hint_percent=0)) == "What is 6*7?\n\n"
    broken = Prompt(0, "What is 6*7?", "43", solution=problem.solution)
    assert questa_nemotron_1_5b.with_hint(broken, DataConfig(hint_percent=50)) is None


def test_a_statement_takes_the_place_of_a_problem_or_refuses_it(tmp_path):
    rows = [generation_row("What is 1+1?", "2", "It is two, 2."), generation_row("And 2+2?", "5", "It is 4.")]
    config = DataConfig(hint_percent=100)
    source = rows_at(tmp_path / "rows.jsonl", *rows)
    found = load_problems(source, " Go.", statement=lambda p: questa_nemotron_1_5b.with_hint(p, config))
    assert [p.text for p in found] == ["What is 1+1?\n\n## Hint.\nIt is two, 2. Go."] and found.num_unwanted == 1


def test_a_refused_row_does_not_take_a_good_one_of_the_same_problem_with_it(tmp_path):
    rows = [
        generation_row("What is 1+1?", "2", "No idea at all."),
        generation_row("What is 1+1?", "2", "It is two, 2."),
    ]
    source, config = rows_at(tmp_path / "rows.jsonl", *rows), DataConfig(hint_percent=100)
    found = load_problems(source, "", statement=lambda p: questa_nemotron_1_5b.with_hint(p, config))
    assert len(found) == 1 and (found.num_unwanted, found.num_duplicates) == (1, 0)


def test_an_error_says_that_levels_left_nothing(tmp_path):
    source = rows_at(tmp_path / "rows.jsonl", {"problem": "1+1", "answer": "2", "level": 3})
    with pytest.raises(ValueError, match="1 of another level"):
        load_problems(source, "", levels=(9,))


def test_a_solution_is_what_follows_the_thoughts():
    assert solution_text({"generation": "<think>a</think>b</think>\nc"}) == "\nc"
    assert solution_text({"generation": '"<think>a</think>b"'}) == "b"
    assert solution_text({"solution": "d", "generation": "e"}) == "d"
    assert solution_text({"solution": '"Quoted" is the first word.'}) == '"Quoted" is the first word.'
    assert solution_text({}) == solution_text({"solution": None}) == ""


@needs_data
def test_the_prompts_of_dapo_are_its_own(tmp_path):
    template = dapo_qwen2_5_32b.config.data.template
    source = str(DATA / "dapo_math_17k_original.parquet")
    first = pq.read_table(source).slice(0, 1).to_pylist()[0]["prompt"][0]["content"]
    assert load_problems(source, "", template).problems[0].text == first


def test_without_shuffling_every_pass_is_the_order_of_the_file():
    encoded = [Prompt(n, str(n), "", prompt_ids=np.zeros(1, np.int32)) for n in range(5)]
    rows = [p.row for p in PromptStream(encoded, seed=3, shuffle=False).prompts_at(3, 9)]
    assert rows == [3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert [p.row for p in PromptStream(encoded, seed=3).prompts_at(0, 5)] != [0, 1, 2, 3, 4]
