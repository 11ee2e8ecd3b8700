"""Problems from files of every format and from the hub, and what is refused."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastgrpo.config import DataConfig
from fastgrpo.data import load_problems, read
from fastgrpo.data.answers import unwrap_answer
from fastgrpo.data.instructions import DAPO_PREFIX, DAPO_SUFFIX
from fastgrpo.data.schemas import level_number
from fastgrpo.types import Prompt

REAL = Path(__file__).parents[2].parent / "shared" / "data"
SUFFIX = DataConfig().suffix
INSTRUCTION = SUFFIX.strip()


def real(name: str) -> str:
    if not (REAL / name).exists():
        pytest.skip(f"needs the real data file {REAL / name}")
    return str(REAL / name)


def write(path: Path, rows: list) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def chat_row(content, answer="1", role="user") -> dict:
    return {"prompt": [{"content": content, "role": role}], "reward_model": {"ground_truth": answer, "style": "rule"}}


def plain_row(problem, answer="1", **more) -> dict:
    return {"problem": problem, "answer": answer, **more}


# --- the real files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, num_rows, num_duplicates, num_unanswered",
    [
        ("benchmarks/AIME24/test.parquet", 30, 0, 0),
        ("benchmarks/AIME25/test.parquet", 30, 0, 0),
        ("benchmarks/AMC23/test.parquet", 40, 0, 0),
        ("benchmarks/MATH-500/test.parquet", 500, 0, 0),
        ("benchmarks/Minerva/test.parquet", 272, 0, 0),
        ("benchmarks/Olympiad-Bench/test.parquet", 674, 0, 0),
        ("benchmarks/BRUMO25/test.parquet", 30, 0, 0),
        ("benchmarks/CMIMC25/test.parquet", 40, 0, 0),
        ("benchmarks/HMMT25/test.parquet", 30, 0, 0),
        ("benchmarks/GSM8K/test.jsonl", 1319, 0, 0),
        ("train/gsm8k.jsonl", 7473, 0, 0),
        ("train/dapo_math_17k.parquet", 17398, 0, 0),
        ("train/dapo_math_17k_original.parquet", 17917, 519, 0),
        ("train/math_12k_levels.parquet", 12000, 1, 4),  # two are empty, two are "None"
    ],
)
def test_a_real_file_gives_every_row_once_and_counts_the_rest(name, num_rows, num_duplicates, num_unanswered):
    problems = load_problems(real(name), SUFFIX)
    assert (problems.num_rows, problems.num_duplicates) == (num_rows, num_duplicates)
    assert problems.num_unanswered == num_unanswered
    assert len(problems) == num_rows - num_duplicates - num_unanswered
    rows = [p.row for p in problems]
    assert rows == sorted(set(rows))
    for p in problems:
        assert p.text.endswith(SUFFIX) and p.text.count(INSTRUCTION) == 1
        body = p.text.removesuffix(SUFFIX)
        assert body and body == body.strip()
        assert "Answer: $Answer" not in body and 'after "Answer:"' not in body
        assert p.answer and p.answer == p.answer.strip()


def test_the_two_published_forms_of_dapo_hold_the_same_problems():
    original = load_problems(real("train/dapo_math_17k_original.parquet"), SUFFIX)
    processed = load_problems(real("train/dapo_math_17k.parquet"), SUFFIX)
    assert len(original) == len(processed) == 17398
    assert {p.text for p in original} == {p.text for p in processed}
    assert original.num_conflicts == 7


def test_problems_of_dapo_that_differ_in_white_space_only_are_kept():
    problems = load_problems(real("train/dapo_math_17k.parquet"), SUFFIX)
    assert len({p.text for p in problems}) == 17255


def test_math_has_its_levels_and_other_data_none():
    problems = load_problems(real("train/math_12k_levels.parquet"), SUFFIX)
    assert {p.level for p in problems} == {1, 2, 3, 4, 5}
    assert {p.level for p in load_problems(real("train/gsm8k.jsonl"), SUFFIX)} == {None}


def test_gold_of_real_files_is_unwrapped():
    aime = load_problems(real("benchmarks/AIME24/test.parquet"), SUFFIX)
    assert aime.problems[0].answer == "204" and not any("boxed" in p.answer for p in aime)
    gsm8k = load_problems(real("train/gsm8k.jsonl"), SUFFIX)
    assert gsm8k.problems[0].answer == "72"
    assert all(float(p.answer) == float(p.answer) and "," not in p.answer for p in gsm8k)
    assert load_problems(real("benchmarks/BRUMO25/test.parquet"), SUFFIX).problems[0].answer == "2^{99}"


# --- what a row says --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "written",
    [
        "What is 1+1?",
        "  What is 1+1?\n",
        f"What is 1+1? {INSTRUCTION}",
        f"What is 1+1?\n\n{INSTRUCTION}\n",
        f"What is 1+1?{INSTRUCTION}",
        f"What is 1+1? {INSTRUCTION}".replace("{}", "{{}}"),
        f"{DAPO_PREFIX}What is 1+1?{DAPO_SUFFIX}",
    ],
)
@pytest.mark.parametrize("suffix", [SUFFIX, "\nAnswer in words.", ""])
def test_a_problem_ends_in_the_suffix_once_whatever_instruction_it_came_with(tmp_path, written, suffix):
    source = write(tmp_path / "a.jsonl", [chat_row(written)])
    assert load_problems(source, suffix).problems[0].text == "What is 1+1?" + suffix


def test_a_suffix_that_is_there_already_is_not_added_again(tmp_path):
    source = write(tmp_path / "a.jsonl", [plain_row("What? Answer in words.")])
    assert load_problems(source, "\nAnswer in words.").problems[0].text == "What?\nAnswer in words."


@pytest.mark.parametrize("ending", [".parquet", ".jsonl", ".json"])
@pytest.mark.parametrize(
    "row, answer",
    [
        (chat_row("Q", "\\boxed{204}"), "204"),
        (plain_row("Q", 7), "7"),
        (plain_row("Q", 7.0), "7"),
        (plain_row("Q", 2.5), "2.5"),
        (plain_row("Q", " \\frac{1}{2} "), "\\frac{1}{2}"),
        ({"question": "Q", "answer": "So 1,000+234.\n#### 1,234"}, "1234"),
        ({"question": "Q", "answer": "(1,2)"}, "(1,2)"),
    ],
)
def test_every_schema_reads_the_same_from_every_format(tmp_path, ending, row, answer):
    problems = load_problems(write(tmp_path / f"a{ending}", [row]), SUFFIX)
    assert problems.problems == [Prompt(0, "Q" + SUFFIX, answer)]


@pytest.mark.parametrize(
    "wrapped, bare",
    [
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{1} or \\boxed{2}", "\\boxed{1} or \\boxed{2}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("x = \\boxed{1}", "x = \\boxed{1}"),
    ],
)
def test_only_a_single_box_around_the_whole_gold_is_removed(wrapped, bare):
    assert unwrap_answer(wrapped) == bare


def test_levels_are_read_as_published():
    levels = [3, 3.0, "3", "Level 3", "Level ?", None, float("nan"), "hard"]
    assert [level_number(level) for level in levels] == [3, 3, 3, 3, None, None, None, None]


def test_the_first_of_duplicates_is_kept_and_disagreement_is_counted(tmp_path):
    rows = [plain_row("A", "1"), plain_row("B", "2"), plain_row("A", "1"), plain_row("A", "3"), plain_row("C", "")]
    problems = load_problems(write(tmp_path / "a.jsonl", rows), "")
    assert [(p.row, p.text, p.answer) for p in problems] == [(0, "A", "1"), (1, "B", "2")]
    assert (problems.num_rows, problems.num_duplicates, problems.num_conflicts) == (5, 2, 1)
    assert problems.num_unanswered == 1


def test_a_folder_is_read_in_the_order_of_names_and_its_rows_are_counted_through(tmp_path):
    write(tmp_path / "b.jsonl", [plain_row("B")])
    write(tmp_path / "a.parquet", [chat_row("A"), chat_row("A")])
    (tmp_path / "README.md").write_text("not data")
    problems = load_problems(str(tmp_path), "")
    assert [(p.row, p.text) for p in problems] == [(0, "A"), (2, "B")]


def test_a_line_separator_inside_a_json_text_does_not_end_its_row(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"problem": "a\u2028b", "answer": 1}\n\n', encoding="utf-8")
    assert load_problems(str(tmp_path / "a.jsonl"), "").problems[0].text == "a\u2028b"


# --- errors of files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["missing.jsonl", "some/folder/x.parquet", "no_such_name", "a/b/c", ""])
def test_a_source_that_does_not_exist_is_named_with_what_was_looked_for(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"does not exist.*hub data set owner/name") as error:
        load_problems(source, "")
    assert source in str(error.value) and str(tmp_path) in str(error.value)


def test_what_is_no_regular_file_is_named_as_that(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    for source in (str(tmp_path / "a.jsonl"), "/dev/zero"):
        with pytest.raises(ValueError, match=rf"{source} is neither a file nor a folder"):
            load_problems(source, "")


def test_an_unknown_ending_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("problem,answer\n")
    with pytest.raises(ValueError, match=r"a\.csv ends in \.csv.*Needed: a \.parquet"):
        load_problems(str(tmp_path / "a.csv"), "")


def test_a_folder_without_data_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(ValueError, match=r"holds no \.parquet, \.jsonl, \.json file"):
        load_problems(str(tmp_path), "")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_an_empty_data_set_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"holds no problem with an answer \(0 rows"):
        load_problems(write(tmp_path / name, []), "")


def test_a_data_set_without_any_answer_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no problem with an answer \(1 rows"):
        load_problems(write(tmp_path / "a.jsonl", [plain_row("A", " ")]), "")


@pytest.mark.parametrize("content", [b"", b"PAR1 this is no parquet"])
def test_an_unreadable_parquet_is_named(tmp_path, content):
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read as parquet"):
        load_problems(str(tmp_path / "a.parquet"), "")


def test_a_parquet_that_breaks_in_the_middle_is_named(tmp_path):
    path = Path(write(tmp_path / "a.parquet", [plain_row(f"problem {i}") for i in range(1000)]))
    content = bytearray(path.read_bytes())
    content[4:200] = b"\xff" * 196  # the pages, not the footer
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read as parquet"):
        load_problems(str(path), "")


@pytest.mark.parametrize("broken", [b'{"problem": "B", "ans', b'{"problem": "\xff"}'])
def test_a_broken_line_is_named_by_row_and_line(tmp_path, broken):
    (tmp_path / "a.jsonl").write_bytes(b'{"problem": "A", "answer": 1}\n\n' + broken + b"\n")
    with pytest.raises(ValueError, match=r"a\.jsonl, row 1 \(line 3\) is not valid JSON"):
        load_problems(str(tmp_path / "a.jsonl"), "")


def test_json_that_is_no_list_of_objects_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"problem": "A", "answer": 1}')
    with pytest.raises(ValueError, match="must hold a list of rows, got a dict"):
        load_problems(str(path), "")
    path.write_text('[{"problem": "A", "answer": 1}, 7]')
    with pytest.raises(ValueError, match=r"row 1 must be an object .* got a int"):
        load_problems(str(path), "")
    path.write_text("[")
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON"):
        load_problems(str(path), "")


# --- errors of rows ---------------------------------------------------------------------------------------------------


def test_unknown_columns_are_listed_with_the_known_schemas(tmp_path):
    with pytest.raises(ValueError, match=r"columns text, label\. Known: a problem \(problem, question"):
        load_problems(write(tmp_path / "a.jsonl", [{"text": "A", "label": "1"}]), "")


@pytest.mark.parametrize(
    "good, bad, says",
    [
        (plain_row("A"), {"problem": "B"}, "the row has no answer"),
        (plain_row("A"), plain_row("B", None), "the row has no answer"),
        (plain_row("A"), plain_row("B", float("nan")), "the row has no answer"),
        (plain_row("A"), plain_row("B", ["1", "2"]), r"has 2 answers, list \['1', '2'\]"),
        (plain_row("A"), plain_row("B", True), "answer must be text or a number, got bool"),
        (plain_row("A"), plain_row(None), "problem must be text, got NoneType"),
        (plain_row("A"), plain_row(5), "problem must be text, got int 5"),
        (plain_row("A"), plain_row(" \n"), "the problem is empty"),
        (plain_row("A"), plain_row(" " + INSTRUCTION), "the problem is empty"),
        (chat_row("A"), chat_row(""), "the problem is empty"),
        (chat_row("A"), chat_row("B", None), "the row has no answer"),
        (chat_row("A"), chat_row("B", role="system"), r"end with the user's message, got the roles \['system'\]"),
        (chat_row("A"), chat_row("B", role="tool"), "role must be system, user or assistant, got str 'tool'"),
        (chat_row("A"), {**chat_row("B"), "prompt": []}, r"got the roles \[\]"),
        (chat_row("A"), {**chat_row("B"), "prompt": ["B"]}, "must be a text or a list of messages, got list"),
        (chat_row("A"), {**chat_row("B"), "prompt": "[{'role': 'user'"}, "a chat that was written as text"),
        (chat_row("A"), {**chat_row("B"), "reward_model": None}, "reward_model must be an object"),
        ({"question": "A", "answer": "#### 1"}, {"question": "B", "answer": "It is\n1"}, "begins with ####"),
    ],
)
def test_a_bad_row_is_named_with_what_is_wrong(tmp_path, good, bad, says):
    with pytest.raises(ValueError, match=rf"a\.jsonl, row 1 \(line 2\): .*{says}"):
        load_problems(write(tmp_path / "a.jsonl", [good, bad]), "")


@pytest.mark.parametrize(
    "row",
    [
        {"problem": "A", "tests": ["1"]},
        {"question": "A"},
        {"prompt": "A"},
        {"prompt": [{"role": "user", "content": "A"}]},
        plain_row("A", ""),
        plain_row("A", None),
        plain_row("A", ["1", "2"]),
        chat_row("A", None),
    ],
)
def test_a_row_needs_an_answer_but_where_the_reward_reads_it_whole(tmp_path, row):
    source = write(tmp_path / "a.jsonl", [row])
    with pytest.raises(ValueError, match=r"for a reward that asks for `row`|no answer|an answer|has 2 answers"):
        load_problems(source, "")
    (problem,) = problems = load_problems(source, "", need_answers=False)
    assert (problem.text, problem.answer, problems.num_unanswered) == ("A", "", 0)


def test_without_need_of_answers_those_that_there_are_stay(tmp_path):
    rows = [plain_row("A", "1"), plain_row("B", ""), plain_row("A", "1"), plain_row(" ", "1")]
    problems = load_problems(write(tmp_path / "a.jsonl", rows[:3]), "", need_answers=False)
    assert [(p.text, p.answer) for p in problems] == [("A", "1"), ("B", "")] and problems.num_duplicates == 1
    with pytest.raises(ValueError, match=r"row 3 .*: the problem is empty"):
        load_problems(write(tmp_path / "b.jsonl", rows), "", need_answers=False)


def test_a_bad_row_of_a_parquet_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"a\.parquet, row 1: the row has no answer"):
        load_problems(write(tmp_path / "a.parquet", [plain_row("A"), plain_row("B", None)]), "")


# --- the hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub whose only snapshot is `tmp_path`; returns the folder and the calls that were made."""
    calls = []

    def snapshot_download(hub_id, **kwargs):
        calls.append((hub_id, kwargs))
        return str(tmp_path)

    monkeypatch.setattr(read, "snapshot_download", snapshot_download)
    return tmp_path, calls


def test_a_hub_id_is_fetched_as_a_data_set_without_its_other_files(hub):
    folder, calls = hub
    (folder / "data").mkdir()
    write(folder / "data" / "train-0.parquet", [plain_row("A")])
    (folder / "dataset_infos.json").write_text("{}")
    assert load_problems("owner/name", "").problems == [Prompt(0, "A", "1")]
    assert calls == [("owner/name", {"repo_type": "dataset", "allow_patterns": ["*.parquet", "*.jsonl", "*.json"]})]


def test_a_hub_data_set_with_several_splits_must_be_narrowed_to_one(hub):
    folder, calls = hub
    for split in ("train", "test"):
        (folder / split).mkdir()
        write(folder / split / "0.jsonl", [plain_row(split)])
    with pytest.raises(ValueError, match=r"several splits \(test, train\).* as in owner/name:test/0\.jsonl"):
        load_problems("owner/name", "")
    for path in ("train", "train/", "train/0.jsonl"):
        assert [p.text for p in load_problems(f"owner/name:{path}", "")] == ["train"]
        assert calls[-1][1]["allow_patterns"][0] == path
    with pytest.raises(ValueError, match=r"owner/name has no .* file at 'dev'"):
        load_problems("owner/name:dev", "")


def test_a_hub_that_cannot_be_reached_leads_to_a_local_file(monkeypatch):
    def snapshot_download(hub_id, **_):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(read, "snapshot_download", snapshot_download)
    with pytest.raises(
        ValueError, match=r"'owner/name' is no local path.*ConnectionError: Name or.*local file or fold"
    ):
        load_problems("owner/name", "")
