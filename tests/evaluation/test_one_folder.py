"""One process works in a folder at a time, and what kept it from a verdict may be mended."""

import json
import os
import shutil

import pytest

from fastgrpo.evaluation.folder import EvaluationFolder
from fastgrpo.evaluation.plan import Plan
from fastgrpo.evaluation.records import read_evaluation, read_rows
from fastgrpo.evaluation.suites import SUITES
from tests.evaluation.running import evaluate, num_lines, rows

SETTINGS = ("--dtype", "float64")


def test_a_second_process_in_a_folder_is_sent_away(tiny_base, tmp_path, capsys):
    with EvaluationFolder(tmp_path / "e").lock():
        assert evaluate(tiny_base, tmp_path, *SETTINGS) == 2
    assert f"is in use by process {os.getpid()} on " in capsys.readouterr().err
    assert evaluate(tiny_base, tmp_path, *SETTINGS) == 0


def test_a_rule_that_raises_on_everything_is_told_and_one_on_some_is_counted(tiny_base, tmp_path, capsys):
    rule = tmp_path / "rule.py"
    rule.write_text("def judge(response, answer):\n    raise KeyError('oh dear')\n")
    with_rule = (*SETTINGS, "--rule", f"{rule}:judge")
    assert evaluate(tiny_base, tmp_path, *with_rule) == 2
    assert "oh dear" in capsys.readouterr().err
    assert not (tmp_path / "e").exists()
    rule.write_text("def judge(response, answer):\n    return bool(1 / ((len(response) + 1) % 5))\n")
    assert evaluate(tiny_base, tmp_path, *with_rule) == 0
    failed = [row for row in rows(tmp_path / "e", "verdicts") if row["failure"]]
    assert failed and any(f"{len(failed)} raised" in note for note in read_evaluation(tmp_path / "e").about["notes"])
    assert f"{len(failed)} raised" in (tmp_path / "e" / "results.md").read_text()


def test_another_rule_in_the_same_file_is_another_evaluation(tiny_base, tmp_path, capsys):
    rule = tmp_path / "rule.py"
    rule.write_text("def judge(response, answer):\n    return True\n")
    assert evaluate(tiny_base, tmp_path, *SETTINGS, "--rule", f"{rule}:judge") == 0
    rule.write_text("def judge(response, answer):\n    return False\n")
    assert evaluate(tiny_base, tmp_path, *SETTINGS, "--rule", f"{rule}:judge") == 2
    assert "rule_fingerprint" in capsys.readouterr().err


def test_a_response_that_took_too_long_to_judge_is_judged_again(tiny_base, tmp_path):
    assert evaluate(tiny_base, tmp_path, *SETTINGS) == 0
    verdicts = tmp_path / "e" / "verdicts" / "held_out.jsonl"
    lines = [json.loads(line) for line in verdicts.read_text().splitlines()]
    late = {**lines[3], "rule": False, "failure": "timeout"}
    verdicts.write_text("".join(json.dumps(line) + "\n" for line in [*lines[:3], late, *lines[4:]]))
    assert evaluate(tiny_base, tmp_path, *SETTINGS) == 0
    assert num_lines(tmp_path / "e", "verdicts") == len(lines) + 1
    assert json.loads(verdicts.read_text().splitlines()[-1]) == lines[3]


def test_an_evaluation_that_drew_nothing_may_be_mended(tiny_base, tmp_path):
    assert evaluate(tiny_base, tmp_path, *SETTINGS) == 0
    shutil.rmtree(tmp_path / "e" / "generations")
    shutil.rmtree(tmp_path / "e" / "verdicts")
    assert evaluate(tiny_base, tmp_path, *SETTINGS, "--seed", "5") == 0


def test_other_prompts_of_the_same_problems_are_another_evaluation(tiny_base, tmp_path, capsys):
    """A template with the time in it, which the fingerprint of the model's folder does not see."""
    shutil.copytree(tiny_base, tmp_path / "base")
    template = tmp_path / "base" / "model" / "chat_template.jinja"
    template.write_text("{{ messages[0]['content'] }} 1")
    settings = (*SETTINGS, "--chat_template")
    assert evaluate(tmp_path / "base", tmp_path, *settings) == 0
    assert evaluate(tmp_path / "base", tmp_path, *settings) == 0
    template.write_text("{{ messages[0]['content'] }} 2")
    capsys.readouterr()
    assert evaluate(tmp_path / "base", tmp_path, *settings) == 2
    assert "held_out: other prompts or answers, the first of them in row 0" in capsys.readouterr().err
    about = tmp_path / "e" / "evaluation.json"
    facts = json.loads(about.read_text())
    del facts["benchmarks"]["held_out"]["prompts"]  # an older version did not note them
    about.write_text(json.dumps(facts))
    assert evaluate(tmp_path / "base", tmp_path, *settings) == 0


@pytest.mark.parametrize("content", ["[]", "{", "[" * 100_000, '{"benchmarks": []}', '{"benchmarks": {"held_out": 1}}'])
def test_a_broken_evaluation_json_is_said_to_be_and_may_be_overwritten(content, tmp_path):
    folder = EvaluationFolder(tmp_path)
    folder.about.write_text(content)
    with pytest.raises(ValueError, match=r"evaluation.json cannot be read .*: --overwrite the evaluation, or mend"):
        folder.check({}, Plan(SUITES["justrl"], [], []), overwrite=False)
    folder.check({}, Plan(SUITES["justrl"], [], []), overwrite=True)


@pytest.mark.parametrize("line", [b"[]", b"{}", b"[" * 100_000, b"null", b'{"problem": "1"}', b"\xff", b"9" * 5000])
def test_a_broken_row_is_said_with_its_line(line, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"problem": 1}\n' + line + b"\n")
    with pytest.raises(ValueError, match=r"rows.jsonl, line 2 is no.* Remove that line, and the same command makes it"):
        read_rows(path)


def test_a_response_whose_row_is_removed_is_drawn_and_judged_anew(tiny_base, tmp_path):
    assert evaluate(tiny_base, tmp_path, *SETTINGS, "--samples", "1") == 0
    whole = [rows(tmp_path / "e", kind) for kind in ("generations", "verdicts")]
    for kind in ("generations", "verdicts"):
        path = tmp_path / "e" / kind / "held_out.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join([lines[0], *lines[2:]]))
    assert evaluate(tiny_base, tmp_path, *SETTINGS, "--samples", "1") == 0
    assert [rows(tmp_path / "e", kind) for kind in ("generations", "verdicts")] == whole


def test_an_overwrite_follows_no_link_and_mixes_nothing_if_it_fails(tiny_base, tmp_path, capsys, monkeypatch):
    assert evaluate(tiny_base, tmp_path, *SETTINGS, "--samples", "1") == 0
    disk = (tmp_path / "e" / "verdicts").rename(tmp_path / "large_disk")
    (tmp_path / "e" / "verdicts").symlink_to(disk)

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    others = (*SETTINGS, "--samples", "1", "--seed", "5")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", refuse)
        assert evaluate(tiny_base, tmp_path, *others, "--overwrite") == 1
    assert num_lines(tmp_path, "large_disk") == 16 and not (tmp_path / "e" / "verdicts").exists()
    assert evaluate(tiny_base, tmp_path, *others) == 2
    assert "seed: 1 there, 5 now" in capsys.readouterr().err
    assert evaluate(tiny_base, tmp_path, *others, "--overwrite") == 0
    assert num_lines(tmp_path / "e", "verdicts") == num_lines(tmp_path, "large_disk") == 16
