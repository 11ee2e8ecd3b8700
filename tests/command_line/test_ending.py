"""Signals that announce the end, to real processes of each kind."""

import signal
import subprocess
import sys
import textwrap

import pytest

from fastgrpo.command_line.ending import ANNOUNCING

BEGIN = """
    import atexit, os, signal, sys, time
    from fastgrpo.command_line import run_command
    from fastgrpo.command_line.ending import do_nothing, handle

    def say(word):
        os.write(1, word.encode() + b"\\n")

    def wait():
        say("ready")
        while True:
            try:
                time.sleep(1000)
            except BaseException:  # as code that is not ours may do
                pass
"""


def begun(code: str, **options) -> "subprocess.Popen[str]":
    """A process that has said that it is ready."""
    script, pipe = textwrap.dedent(BEGIN) + textwrap.dedent(code), subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", script], stdout=pipe, stderr=pipe, text=True, **options)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def ends(process: "subprocess.Popen[str]") -> tuple[int, str]:
    _, said = process.communicate(timeout=60)
    return process.returncode, said


@pytest.mark.parametrize("number", ANNOUNCING)
def test_a_command_ends_in_one_line_whatever_its_code_catches(number):
    process = begun("run_command(wait)")
    process.send_signal(number)
    assert ends(process) == (128 + number, f"fastgrpo: ended by {number.name}; what is saved is whole\n")


def test_a_rank_is_ended_by_the_kernel_even_where_no_handler_runs():
    process = begun("import ctypes; run_command(lambda: say('ready') or ctypes.PyDLL(None).sleep(1000), is_rank=True)")
    process.send_signal(signal.SIGINT)
    assert ends(process) == (-signal.SIGINT, "")


def test_what_was_ignored_at_the_start_stays_ignored():
    ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731 - as nohup does
    process = begun("run_command(wait)", preexec_fn=ignore)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert ends(process) == (128 + signal.SIGTERM, "fastgrpo: ended by SIGTERM; what is saved is whole\n")


def test_no_late_signal_changes_the_code_of_a_command_that_is_done():
    code = """
        atexit.register(lambda: (say("ready"), time.sleep(1.0)))
        run_command(lambda: 75)
    """
    process = begun(code)
    for number in ANNOUNCING:
        process.send_signal(number)
    assert ends(process) == (75, "")


def test_a_process_that_serves_a_run_hears_nothing_and_its_children_may():
    code = """
        import subprocess
        handle(do_nothing)
        child = subprocess.Popen(["sleep", "1000"])
        say("ready")
        time.sleep(0.5)
        child.terminate()
        sys.exit(child.wait() == -signal.SIGTERM and 7)
    """
    process = begun(code)
    for number in ANNOUNCING:
        process.send_signal(number)
    assert ends(process) == (7, "")


def test_a_handler_that_was_set_in_c_is_kept():
    code = """
        import faulthandler
        faulthandler.register(signal.SIGUSR1)
        handle(do_nothing)
        say("ready")
        time.sleep(0.5)
    """
    process = begun(code)
    process.send_signal(signal.SIGUSR1)
    code, said = ends(process)
    assert code == 0 and 'File "<string>"' in said
