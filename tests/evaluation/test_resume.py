"""An evaluation that was stopped in any way goes on and ends as one that never was."""

import resource
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from fastgrpo.evaluate import main
from fastgrpo.evaluation.folder import RowFile
from fastgrpo.evaluation.records import read_evaluation
from tests.evaluation.running import NINE, REAL, evaluate, num_lines, rows, settings_of, start, wait_until


def torn(path: Path, keep: int) -> None:
    """The file as a kill may leave it: so many whole rows, and a part of the next."""
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:keep]) + lines[keep][: len(lines[keep]) // 2])


def same_results(folder: Path, other: Path) -> bool:
    """Problems, responses, verdicts and tables; the evaluations are called alike."""
    kinds = ("generations", "verdicts")
    files = [f"problems/{name}.jsonl" for name in names(folder)] + ["results.json", "results.md"]
    return names(folder) == names(other) and all(
        [rows(folder, kind, name) == rows(other, kind, name) for kind in kinds for name in names(folder)]
        + [(folder / file).read_text() == (other / file).read_text() for file in files]
    )


def names(folder: Path) -> list[str]:
    return [b.name for b in read_evaluation(folder).benchmarks]


@pytest.fixture(scope="module")
def whole(tiny_base, tmp_path_factory):
    """One that nothing happened to, in float64, where rounding decides no draw."""
    out = tmp_path_factory.mktemp("whole")
    assert evaluate(tiny_base, out, "--dtype", "float64") == 0
    return out / "e"


@pytest.mark.parametrize("drawn, judged", [(0, None), (11, None), (31, None), (32, 5)])
def test_rows_that_a_kill_tore_are_made_again_and_the_others_stay(whole, tiny_base, tmp_path, drawn, judged):
    folder = tmp_path / "e"
    shutil.copytree(whole, folder)
    for name in ("results.json", "results.md", "report.html"):
        (folder / name).unlink()
    generations, verdicts = folder / "generations/held_out.jsonl", folder / "verdicts/held_out.jsonl"
    kept = generations.read_bytes().splitlines()[:drawn]
    if drawn < 32:
        torn(generations, drawn)
        verdicts.unlink()
    if judged is not None:
        torn(verdicts, judged)
    assert evaluate(tiny_base, tmp_path, "--dtype", "float64") == 0
    assert generations.read_bytes().splitlines()[:drawn] == kept
    assert num_lines(folder) == num_lines(folder, "verdicts") == 32
    assert same_results(folder, whole)


def test_a_row_file_drops_a_torn_last_row_of_any_length_and_nothing_else(tmp_path):
    path = tmp_path / "a.jsonl"
    for text in ("", "x" * 10, "x" * 200_000):
        with RowFile(path) as file:
            file.write([{"text": text}, {"text": "y"}])
        whole = path.read_bytes()
        for tear in (b"{", b'{"text": "' + b"z" * 150_000):
            path.write_bytes(whole + tear)
            RowFile(path).__exit__(None, None, None)
            assert path.read_bytes() == whole
    path.write_bytes(b"no line end")
    RowFile(path).__exit__(None, None, None)
    assert path.read_bytes() == b""


def test_a_broken_row_in_the_middle_is_told_with_its_line(whole, tiny_base, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "e")
    path = tmp_path / "e/generations/held_out.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"garbage\n", *lines[2:]]))
    assert evaluate(tiny_base, tmp_path, "--dtype", "float64") == 2
    assert "held_out.jsonl, line 2 is not JSON" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "kill, code, ranks",
    [
        (signal.SIGKILL, -9, "1"),
        (signal.SIGINT, 75, "1"),
        (signal.SIGTERM, 75, "2"),
    ],
)
def test_a_stopped_evaluation_goes_on_and_ends_as_the_whole_one(whole, tiny_base, tmp_path, kill, code, ranks):
    """By a kill, a signal and Ctrl-C, with one process and with two; slots are few, so that it is in the middle."""
    arguments = settings_of(tiny_base, tmp_path, "--dtype", "float64", "--max_sequences", "2", "--ranks", ranks)
    process, folder = start(arguments), tmp_path / "e"
    wait_until(lambda: num_lines(folder) >= 3, process)
    process.send_signal(kill)
    said = process.communicate()[0]
    assert process.returncode == code, said
    most = 31 if kill == signal.SIGKILL else 32  # a signal is heard between two steps: all may be drawn by then
    assert 3 <= len(rows(folder, "generations")) <= most
    if code == 75:
        assert "the same command goes on from here" in said
    assert main(arguments) == 0
    assert same_results(folder, whole)


@pytest.mark.slow
def test_a_full_disk_is_told_and_what_was_drawn_is_kept(whole, tiny_base, tmp_path):
    """A limit on the size of a file stands for the disk: both end a write with an error of the system."""

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2400, resource.RLIM_INFINITY))

    arguments = settings_of(tiny_base, tmp_path, "--dtype", "float64")
    process = start(arguments, preexec_fn=small_files)
    said = process.communicate()[0]
    assert process.returncode == 1 and "fastgrpo: stopped: " in said and "goes on from here" in said, said
    kept = num_lines(tmp_path / "e")
    assert 0 < kept < 32
    assert main(arguments) == 0
    assert same_results(tmp_path / "e", whole)


@pytest.mark.slow
def test_ranks_draw_what_one_process_draws_and_a_lost_rank_ends_the_others(whole, tiny_base, tmp_path):
    arguments = settings_of(tiny_base, tmp_path, "--dtype", "float64", "--ranks", "2", "--max_sequences", "2")
    process, folder = start(arguments), tmp_path / "e"
    wait_until(lambda: num_lines(folder) >= 2, process)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    subprocess.run(["kill", "-9", children.stdout.split()[0]], check=True)
    said = process.communicate()[0]
    assert process.returncode == 1 and "ended with -9" in said, said
    assert main(arguments) == 0
    assert len({p.name for p in (folder / "generations").iterdir()}) == 2
    assert same_results(folder, whole)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nine_benchmarks_killed_and_resumed_give_the_same_tables(tiny_base, tmp_path):
    """JustRL's nine in full, 1,646 problems; responses of a few tokens, for a model that solves none of them."""
    if not REAL.exists():
        pytest.skip(f"needs the real data in {REAL}")

    def arguments(out: Path) -> list[str]:
        return [
            str(tiny_base / "model"), "--data", str(REAL), "--samples", "1", "--max_response_tokens", "4",
            "--extrapolate", "--device", "cpu", "--max_sequences", "32", "--out", str(out), "--name", "e",
        ]  # fmt: skip

    assert main(arguments(tmp_path / "whole")) == 0
    process, folder = start(arguments(tmp_path / "killed")), tmp_path / "killed" / "e"
    wait_until(lambda: num_lines(folder) >= 500, process)
    process.kill()
    process.communicate()
    assert 500 <= num_lines(folder) < 1646
    assert main(arguments(tmp_path / "killed")) == 0
    whole = tmp_path / "whole" / "e"
    assert sorted(names(folder)) == sorted(NINE) and num_lines(folder) == num_lines(folder, "verdicts") == 1646
    assert same_results(folder, whole)
