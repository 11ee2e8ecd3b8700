"""Standard streams that are closed, broken or full, under real processes."""

import os
import subprocess
import sys
import textwrap
import threading

import pytest

BEGIN = """
    import os, subprocess, sys
    from fastgrpo.command_line import ignore_lost_output, run_command

    def told(text):
        with open(sys.argv[1], "a") as file:
            file.write(text)
"""
PRINTS = """
    def main():
        ignore_lost_output()
        for _ in range(20_000):
            print("a line of some length")
            print("another one", file=sys.stderr)
        subprocess.run(["echo", "a child's"], stderr=subprocess.DEVNULL)
        told("done")
        return 0
    run_command(main)
"""


def run(code: str, file, *, stdout: int | None, stderr: int | None = None, closed: tuple[int, ...] = ()):
    script = textwrap.dedent(BEGIN) + textwrap.dedent(code)

    def close() -> None:
        for descriptor in closed:
            os.close(descriptor)

    return subprocess.run(
        [sys.executable, "-c", script, str(file)], stdout=stdout, stderr=stderr, preexec_fn=close, timeout=60
    )


@pytest.fixture
def unread():
    """The end of a pipe whose reader has left."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


@pytest.fixture
def full():
    descriptor = os.open("/dev/full", os.O_WRONLY)
    yield descriptor
    os.close(descriptor)


def test_work_goes_on_where_nobody_hears_it(unread, full, tmp_path):
    for number, stdout in enumerate((unread, full)):
        assert run(PRINTS, tmp_path / str(number), stdout=stdout, stderr=stdout).returncode == 0
        assert (tmp_path / str(number)).read_text() == "done"


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_what_is_closed_at_the_start_is_nowhere_and_no_file_takes_its_place(tmp_path, closed):
    code = """
        def main():
            with open(sys.argv[1], "a") as file:
                print("said")
                os.write(1, b"said")
                os.write(2, b"said")
                sys.stderr.write("said")
                assert file.fileno() > 2 and sys.stdin is not None
                assert os.isatty(0) or sys.stdin.read() == ""
                told("done")
            return 0
        run_command(main)
    """
    assert run(code, tmp_path / "file", stdout=None, closed=closed).returncode == 0
    assert (tmp_path / "file").read_text() == "done"


def test_a_pipe_that_is_full_for_a_while_loses_nothing(tmp_path):
    read, write = os.pipe()
    os.set_blocking(write, False)  # as whoever shares it may do
    got: list[bytes] = []

    def drain() -> None:
        while chunk := os.read(read, 1 << 16):
            got.append(chunk)

    reader = threading.Timer(0.5, drain)
    reader.start()
    assert run(PRINTS, tmp_path / "file", stdout=write, stderr=subprocess.DEVNULL).returncode == 0
    os.close(write)
    reader.join()
    os.close(read)
    assert b"".join(got) == b"a line of some length\n" * 20_000 + b"a child's\n"


@pytest.mark.parametrize("print_it", ["print", "Page().print"])
def test_what_is_made_to_be_read_ends_with_its_reader_and_says_when_it_cannot_be_written(
    unread, full, tmp_path, print_it
):
    code = f"""
    from fastgrpo.command_line.console import Page
    run_command(lambda: {print_it}('a product') or 0)
    """
    assert run(code, tmp_path, stdout=unread).returncode == 141
    done = run(code, tmp_path, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr == b"fastgrpo: stopped: [Errno 28] No space left on device\n"
