"""The record of a GPU machine: whole after a kill, kept by one call at a time, copied where it is carried home."""

from pathlib import Path

import pytest

from bench.gpu.record import RECORD, RESULTS, Answer, Record


def test_a_torn_last_line_costs_neither_the_answers_before_it_nor_the_next(tmp_path):
    record = Record(tmp_path, None)
    record.add(Answer("a", "passed"))
    with (tmp_path / RECORD).open("a") as file:
        file.write('{"step": "b", "sta')
    torn = Record(tmp_path, None)
    assert set(torn.answers) == {"a"}
    torn.add(Answer("c", "passed"))
    assert set(Record(tmp_path, None).answers) == {"a", "c"}


def test_a_file_that_a_kill_left_half_copied_is_neither_handed_out_nor_kept(tmp_path, monkeypatch):
    record = Record(tmp_path / "folder", tmp_path / "out")
    record.add(Answer("a", "passed"))
    before = (tmp_path / "out" / RECORD).read_bytes()

    def torn(source: Path, target: Path) -> None:
        target.write_text("ha")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("bench.gpu.record.shutil.copyfile", torn)
        with pytest.raises(KeyboardInterrupt):
            record.add(Answer("b", "passed"))
    assert (tmp_path / "out" / RECORD).read_bytes() == before
    record.hand_out()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted([RECORD, RESULTS])


def test_an_out_folder_that_is_the_record_or_cannot_be_written_to_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="must lie elsewhere"):
        Record(tmp_path, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be written to"), Record(tmp_path / "folder", tmp_path / "file").held():
        pass


def test_an_out_folder_that_fills_up_costs_no_step(tmp_path, monkeypatch, capsys):
    record = Record(tmp_path / "folder", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("bench.gpu.record.tarfile.open", lambda *a: (_ for _ in ()).throw(OSError(28, "full")))
        record.add(Answer("a", "passed"))
    assert "could not be written to" in capsys.readouterr().err
    record.add(Answer("b", "passed"))
    assert set(Record(tmp_path / "folder", None).answers) == {"a", "b"}


def test_lines_that_are_no_answers_do_not_count(tmp_path):
    record = Record(tmp_path, None)
    record.add(Answer("a", "passed"))
    with (tmp_path / RECORD).open("ab") as file:
        file.write(b'\xff\n0\nnull\n[]\n{}\n{"step": "b", "state": "passed", "of a later version": 1}\n')
    assert set(Record(tmp_path, None).answers) == {"a"}


def test_two_calls_do_not_share_a_folder(tmp_path):
    first, second = Record(tmp_path / "folder", tmp_path / "out"), Record(tmp_path / "folder", tmp_path / "out")
    with first.held():
        first.add(Answer("a", "passed"))
        before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
        with pytest.raises(ValueError, match="another `bench gpu` is at work"), second.held():
            pass
        assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
    with second.held():
        assert set(second.answers) == {"a"}
