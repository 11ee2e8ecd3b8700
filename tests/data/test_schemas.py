"""Rows in the schemas of public data sets; all are made up."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastgrpo.data import load_problems, with_columns

Q, SYSTEM = "What is 2+3?", "You think in steps."
USER = {"role": "user", "content": Q}
CHAT = [{"role": "system", "content": SYSTEM}, USER]
ORZ = [{"from": "human", "value": Q}, {"from": "assistant", "ground_truth": {"value": "5"}}]
SOLVED = "We add.\nSo $2+3=\\boxed{5}$."


def source_of(tmp_path, rows, ending=".jsonl"):
    path = tmp_path / f"rows{ending}"
    if ending == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": Q, "solution": "5", "reward_model": {"ground_truth": "5", "style": "rule"}, "source_prompt": [USER]},
        {"prompt": [USER], "reward_model": {"ground_truth": '["5"]'}},  # Skywork-OR1
        {"prompt": json.dumps([USER]), "reward_model": json.dumps({"ground_truth": "5"})},
        {"prompt": str([USER]), "answer": "5"},
        {"prompt": Q, "answer": 5},  # TRL
        {"prompt": [USER], "solution": "$5$"},  # TRL's DeepMath, a formula in its delimiters
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": Q}]}], "answer": "5"},
        {"problem": Q, "level": "Level 3", "type": "Algebra", "solution": SOLVED},  # MATH
        {"source": "synthetic", "problem": Q, "solution": SOLVED, "messages": [USER]},  # NuminaMath-CoT
        {"Problem": Q, "Answer": "5", "ID": "2024-I-1"},
        {"question": Q, "final_answer": ["5"]},
        {"problem": Q, "expected_answer": "5", "generated_solution": "..."},
        {"question": Q, "answer": "We add.\n#### 5"},
        {"instruction": Q, "gold answer": "5"},
        {"messages": [USER], "answer": "5"},
        {"messages": [USER, {"role": "assistant", "content": SOLVED}]},
        {"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": SOLVED}]},
        {"0": ORZ[0], "1": ORZ[1]},  # Open-Reasoner-Zero, as the hub shows it
    ],
)
def test_a_public_schema_is_read(tmp_path, row, ending):
    (problem,) = load_problems(source_of(tmp_path, [row, row], ending), "")
    assert (problem.text, problem.answer.strip("$"), problem.history) == (Q, "5", ())
    assert problem.level == (3 if "level" in row else None)


def test_a_row_that_is_a_list_of_turns_is_read_and_has_them_as_its_columns(tmp_path):
    (tmp_path / "orz.json").write_text(json.dumps([ORZ, ORZ]))
    problems = load_problems(str(tmp_path / "orz.json"), "")
    assert [(p.text, p.answer) for p in problems] == [(Q, "5")] and problems.num_duplicates == 1
    assert with_columns(list(problems), str(tmp_path / "orz.json"))[0].columns == {"conversations": ORZ}


def test_messages_before_the_question_are_kept_and_tell_problems_apart(tmp_path):
    shots = [*CHAT, {"role": "assistant", "content": "5"}, {"role": "user", "content": "What is 1+1?\n\nGo."}]
    rows = [
        {"prompt": CHAT, "reward_model": {"ground_truth": "5"}},
        {"prompt": [USER], "reward_model": {"ground_truth": "5"}},
        {"prompt": shots, "reward_model": {"ground_truth": "2"}},
        {"prompt": CHAT, "reward_model": {"ground_truth": "5"}},
    ]
    problems = load_problems(source_of(tmp_path, rows), "\n\nGo.")
    assert [(p.text, p.history) for p in problems] == [
        (Q + "\n\nGo.", (("system", SYSTEM),)),
        (Q + "\n\nGo.", ()),
        ("What is 1+1?\n\nGo.", (("system", SYSTEM), ("user", Q), ("assistant", "5"))),
    ]
    assert problems.num_duplicates == 1


def test_a_solution_without_a_box_gives_no_answer_and_its_row_is_counted(tmp_path):
    rows = [
        {"problem": "A", "solution": SOLVED},
        {"problem": "B", "solution": "Proof omitted."},
        {"problem": "C", "solution": None},
        {"problem": "D", "solution": "It is \\boxed 7, or \\fbox{\\{1\\}}; not \\boxed{8"},
    ]
    problems = load_problems(source_of(tmp_path, rows), "")
    assert [(p.text, p.answer) for p in problems] == [("A", "5"), ("D", "\\{1\\}")] and problems.num_unanswered == 2


def test_the_first_schema_that_fits_is_taken_and_the_spelling_in_small_letters(tmp_path):
    row = {"question": "Other?", "Problem": "Third?", "problem": Q, "answer": "5", "solution": "\\boxed{6}"}
    (problem,) = load_problems(source_of(tmp_path, [row]), "")
    assert (problem.text, problem.answer, problem.solution) == (Q, "5", "\\boxed{6}")


@pytest.mark.parametrize(
    "row, says",
    [
        ({"prompt": [USER, {"role": "assistant", "content": "5"}], "answer": "5"}, r"roles \['user', 'assistant'\]"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}], "answer": "5"}, "user message must be text"),
        ({"prompt": [{"role": ["user"], "content": "A"}], "answer": "5"}, "role must be system, user or assistant"),
        ({"prompt": '[{"role": "user", "content": ' + "[" * 100_000, "answer": "5"}, "no JSON"),
        ({"prompt": [USER], "reward_model": "[" * 100_000}, "reward_model must be an object"),
        ({"prompt": [*CHAT, {"role": "user", "content": "\ud800"}], "answer": "5"}, "half a surrogate"),
        ({"prompt": [{"role": "system", "content": "\ud800"}, USER], "answer": "5"}, "half a surrogate"),
    ],
)
def test_what_no_schema_explains_is_refused_by_its_row(tmp_path, row, says):
    with pytest.raises(ValueError, match=rf"rows\.jsonl, row 0 \(line 1\): .*{says}"):
        load_problems(source_of(tmp_path, [row]), "")


@pytest.mark.parametrize("text", ["[7]", "7", '[{"problem": "A", "answer": 1}, "B"]'])
def test_rows_that_are_no_objects_are_refused(tmp_path, text):
    (tmp_path / "rows.jsonl").write_text(text + "\n")
    with pytest.raises(ValueError, match=r"row 0 \(line 1\) must be an object with named columns, got a (list|int)"):
        load_problems(str(tmp_path / "rows.jsonl"), "")


def test_json_lines_called_json_are_read_and_a_broken_line_is_named(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('{"problem": "A", "answer": 1}\n{"problem": "B", "answer": 2}\n{"problem": \n')
    with pytest.raises(ValueError, match=r"rows\.json, row 2 \(line 3\) is not valid JSON"):
        load_problems(str(path), "")
    path.write_text(path.read_text().rpartition("{")[0])
    assert [p.answer for p in load_problems(str(path), "")] == ["1", "2"]


def test_text_that_a_recipe_puts_in_place_of_a_problem_is_checked_too(tmp_path):
    source = source_of(tmp_path, [{"problem": "A", "answer": "1", "solution": "\ud800"}])
    with pytest.raises(ValueError, match="row 0: the recipe's problem_text holds half a surrogate pair"):
        load_problems(source, "", statement=lambda problem: problem.text + problem.solution)
