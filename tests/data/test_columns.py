"""The rows that problems are from."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastgrpo.data import load_problems, with_columns


def test_every_problem_has_the_columns_of_its_own_row_through_all_files_of_a_folder(tmp_path):
    rows = [
        {"problem": f"What is {n}+{n % 3}?", "answer": n + n % 3, "n": n, "tests": [{"in": str(n)}]} for n in range(9)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in [*rows[:4], rows[0]]))
    (tmp_path / "b.json").write_text(json.dumps([{**rows[4], "answer": ""}, rows[5]]))
    pq.write_table(
        pa.Table.from_pylist([{**row, "answer": str(row["answer"])} for row in rows[6:]]), tmp_path / "c.parquet"
    )
    prompts = list(load_problems(str(tmp_path), ""))
    assert [p.columns for p in prompts] == [None] * 8
    found = with_columns(prompts[::-1], str(tmp_path))
    assert [p.columns["n"] for p in found] == [8, 7, 6, 5, 3, 2, 1, 0]
    assert all(p.columns["problem"] == p.text and p.columns["tests"] == [{"in": str(p.columns["n"])}] for p in found)


def test_a_source_that_lost_rows_meanwhile_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"problem": f"{n}?", "answer": "1"}) + "\n" for n in range(3)))
    prompts = list(load_problems(str(path), ""))
    path.write_text(path.read_text().split("\n")[0] + "\n")
    with pytest.raises(ValueError, match="has changed while the run began: row 1 is gone"):
        with_columns(prompts, str(path))
