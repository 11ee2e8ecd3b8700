"""Parquet by bytes: what a small file unpacks to, and which columns are read."""

import contextlib
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastgrpo.data import load_problems, parquet, with_columns
from fastgrpo.data.parquet import parquet_rows

MIB = 1 << 20


def write(path, columns, **how):
    pq.write_table(pa.table(columns), path, compression="zstd", **how)
    assert path.stat().st_size < 100_000
    return path


@contextlib.contextmanager
def arrow_memory():
    """The memory pool that Arrow uses meanwhile."""
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        yield pool
    finally:
        pa.set_memory_pool(before)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("use_dictionary", [True, False])
def test_a_few_kilobytes_that_unpack_to_gigabytes_are_refused_and_not_unpacked(tmp_path, nested, use_dictionary):
    texts = ["a" * (5 * MIB)] * 16
    problems = [[{"role": "user", "content": text}] for text in texts] if nested else texts
    file = write(tmp_path / "bomb.parquet", {"prompt": problems, "answer": ["1"] * 16}, use_dictionary=use_dictionary)
    says = r"bomb\.parquet, of [\d,]+ bytes: .*MiB unpacked.*Write it anew"
    with arrow_memory() as memory, pytest.raises(ValueError, match=says):
        load_problems(str(file), "")
    assert memory.max_memory() < 30 * MIB


def test_many_rows_of_one_text_are_refused_when_they_are_too_much_together(tmp_path):
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), ["a" * MIB])
    file = write(tmp_path / "bomb.parquet", {"problem": texts, "answer": ["1"] * 1000}, store_schema=False)
    says = r"its first \d+ rows take over 256 MiB unpacked"
    for choose in (None, lambda names: ["problem"]):
        with arrow_memory() as memory, pytest.raises(ValueError, match=says):
            sum(1 for _ in parquet_rows(file, choose))
        assert memory.max_memory() < 30 * MIB


def test_lists_of_nothing_count_too(tmp_path):
    lists = pa.ListArray.from_arrays([0, 34_000_000], pa.nulls(34_000_000, pa.int8()))
    file = write(tmp_path / "bomb.parquet", {"problem": ["A"], "answer": ["1"], "tests": lists})
    assert [p.text for p in load_problems(str(file), "")] == ["A"]  # nobody asks for that column
    with pytest.raises(ValueError, match=r"its column tests\.list\.element has 34,000,000 values"):
        with_columns(list(load_problems(str(file), "")), str(file))


def test_large_texts_that_people_have_are_read_row_by_row(tmp_path):
    texts = [f"{n} " + chr(97 + n) * 3_000_000 for n in range(5)]
    table = pa.table({"problem": texts, "answer": [str(n) for n in range(5)]})
    pq.write_table(table, tmp_path / "a.parquet", compression="none")
    assert [(p.text, p.answer) for p in load_problems(str(tmp_path / "a.parquet"), "")] == [
        (text, str(n)) for n, text in enumerate(texts)
    ]


def test_only_the_columns_of_the_schema_are_read(tmp_path):
    rows = {"Problem": ["A"], "Answer": ["1"], "extra.text": ["x"], "level": [3], "prompt": ["B"]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    asked = []

    def choose(names):
        asked.append(list(names))
        return ["Problem", "extra.text"]

    assert list(parquet_rows(tmp_path / "a.parquet", choose)) == [{"Problem": "A", "extra.text": "x"}]
    assert asked == [list(rows)]
    (problem,) = load_problems(str(tmp_path / "a.parquet"), "")
    assert (problem.text, problem.level) == ("A", 3)


def test_every_type_that_a_row_may_have_comes_through_unchanged(tmp_path, monkeypatch):
    rows = [
        {
            "text": f"text {n % 3}" if n % 4 else None,
            "chat": [{"role": "user", "content": f"{n}"}] * (n % 3),
            "map": [(f"k{n}", n)] * (n % 2),
            "number": Decimal(n) / 4,
            "bytes": bytes([n]),
            "nested": {"a": {"b": [f"{n}", None]}},
        }
        for n in range(20)
    ]
    schema = pa.schema(
        [
            ("text", pa.string()),
            ("chat", pa.list_(pa.struct([("role", pa.string()), ("content", pa.large_string())]))),
            ("map", pa.map_(pa.string(), pa.int64())),
            ("number", pa.decimal128(10, 2)),
            ("bytes", pa.binary()),
            ("nested", pa.struct([("a", pa.struct([("b", pa.list_(pa.string()))]))])),
        ]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "a.parquet", row_group_size=7)
    assert list(parquet_rows(tmp_path / "a.parquet")) == rows
    monkeypatch.setattr(parquet, "MAX_WHOLE_ROW_BYTES", 2000)  # a row of these, and no batch
    assert list(parquet_rows(tmp_path / "a.parquet")) == rows


def test_unknown_columns_of_a_parquet_are_all_named(tmp_path):
    pq.write_table(pa.table({"text": ["A"], "label": ["1"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: no known schema has the columns text, label"):
        load_problems(str(tmp_path / "a.parquet"), "")
