"""A folder is one launch's until its last process has ended, however that ends."""

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import threading

import pytest

from fastgrpo.ranks import lock
from fastgrpo.ranks.lock import FolderLock


class Holder:
    """A process that holds the lock of a folder: the first of a launch, or with ``joined`` another rank of it."""

    def __init__(self, folder, joined=False):
        ready, told = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            held = FolderLock(folder, print)
            with held.joined() if joined else held:
                os.write(told, b"held")
                signal.pause()
            os._exit(1)
        os.close(told)
        assert os.read(ready, 4) == b"held"
        os.close(ready)

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@pytest.fixture
def holding(tmp_path):
    """Starts processes that hold the lock of the test's folder."""
    started = []

    def start(joined=False):
        started.append(Holder(tmp_path, joined))
        return started[-1]

    yield start
    for holder in started:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            holder.kill()


def take(folder):
    """Whether the lock can be had, and what was said."""
    said = []
    try:
        with FolderLock(folder, said.append):
            return True, said
    except ValueError as error:
        return False, [*said, str(error)]


def test_the_second_is_refused_with_who_holds_the_folder_and_a_kill_sets_it_free(holding, tmp_path):
    first = holding()
    free, said = take(tmp_path)
    since = json.loads((tmp_path / ".lock").read_text())["since"]
    who = f"process {first.pid} on {socket.gethostname()}, since {since}"
    assert not free and said == [
        f"{tmp_path} is in use by {who}: wait until it ends, or end it, or give another --name"
    ]
    first.kill()
    assert take(tmp_path) == (True, [])


def test_one_process_is_refused_by_itself_too(tmp_path):
    with FolderLock(tmp_path, print):
        assert not take(tmp_path)[0]
    assert take(tmp_path)[0]


def test_a_rank_that_outlives_the_first_keeps_the_folder_until_it_ends(holding, tmp_path, monkeypatch):
    first, rank = holding(), holding(joined=True)
    first.kill()
    monkeypatch.setattr(lock, "WAIT_S", 0.3)
    free, said = take(tmp_path)
    assert not free and f"process {first.pid} on" in said[0]
    rank.kill()
    assert take(tmp_path)[0]


def test_the_end_of_a_killed_run_is_waited_for(holding, tmp_path, monkeypatch):
    first, rank = holding(), holding(joined=True)
    first.kill()
    monkeypatch.setattr(lock, "SAID_AFTER_S", 0.0)
    threading.Timer(0.5, rank.kill).start()
    free, said = take(tmp_path)
    assert free and len(said) == 1
    assert f"is in use by process {first.pid} on " in said[0] and "may have ended: waiting up to 120 s" in said[0]


def test_a_stopped_holder_is_a_holder(holding, tmp_path):
    first = holding()
    os.kill(first.pid, signal.SIGSTOP)
    free, said = take(tmp_path)
    assert not free and len(said) == 1  # at once: it is not waited for


def test_what_a_killed_run_leaves_alive_keeps_nothing(tmp_path):
    """A fork of it, and a program that it started."""
    ready, told = os.pipe()
    if (pid := os.fork()) == 0:
        os.setpgid(0, 0)
        with FolderLock(tmp_path, print):
            if os.fork() > 0:
                subprocess.Popen(["sleep", "600"])
            os.write(told, b"on")
            signal.pause()
    try:
        assert len(os.read(ready, 2) + os.read(ready, 2)) == 4
        assert not take(tmp_path)[0]
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert take(tmp_path) == (True, [])
    finally:
        os.killpg(pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_once_and_not_fatal(number, tmp_path, monkeypatch):
    def without(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", without)
    free, said = take(tmp_path)
    assert free and len(said) == 1 and "a file system without locks" in said[0]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"[" * 4096, b'{"pid": [], "host": 3}', b"\xff"])
def test_whatever_the_file_holds_the_refusal_is_in_words(content, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "WAIT_S", 0.0)
    with FolderLock(tmp_path, print):
        (tmp_path / ".lock").write_bytes(content)
        free, said = take(tmp_path)
    assert not free and "is in use by process" in said[-1]


def test_a_folder_that_cannot_be_had_is_refused_in_words(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / ".lock").symlink_to(tmp_path / "thesis.tex")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name, reason in [("file", "File exists"), ("file/a", "Not a directory"), ("dangling", "File exists"),
                         ("linked", "symbolic links")]:  # fmt: skip
        free, said = take(tmp_path / name)
        assert not free and "cannot be used" in said[0] and reason in said[0]
    assert not (tmp_path / "thesis.tex").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
def test_another_users_folder_is_refused_with_what_helps(tmp_path):
    tmp_path.chmod(0o755)
    os.seteuid(65534)
    try:
        free, said = take(tmp_path)
    finally:
        os.seteuid(0)
    assert not free and said[0].endswith("Permission denied: take a folder that this user may write in")


def test_open_files_that_are_too_few_are_said(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(tmp_path / ".lock"))

    monkeypatch.setattr(os, "open", full)
    assert take(tmp_path)[1][0].endswith("Too many open files: raise the limit of open files, `ulimit -n`")
