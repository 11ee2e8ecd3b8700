"""What a hostile program can do, which is nothing, and what a sandbox needs."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from fastgrpo.rewards import (
    CallTest,
    SandboxError,
    StdinTest,
    run_python,
)
from fastgrpo.rewards.sandbox import command, inside, session
from tests.rewards.sandboxes import ADD, UNISTD, needs_bwrap, nobody_reads, require

# What a program cannot do.

HOSTILE = {
    "fork": "import os\nwhile True:\n    os.fork()",
    "start another program": "import subprocess, sys\nsubprocess.run([sys.executable, '-c', ''])\nprint('done')",
    "leave a child": "import os\nif os.fork() == 0:\n    os.setsid()\n    while True: pass\nprint('done')",
    "open a socket": "import socket\nsocket.create_connection(('127.0.0.1', 80))",
    "have a socket": "import socket\nsocket.socket(socket.AF_UNIX)\nprint('done')",
    "kill its parent": "import os\nos.kill(os.getppid(), 9)\nprint('done')",
    "signal its parent otherwise": (
        "import ctypes, os\nparent = os.getppid()\n"
        "print('done' if ctypes.CDLL(None).tgkill(parent, parent, 9) == 0 else 'refused')"
    ),
    "loop": "while True: pass",
    "sleep": "import time\ntime.sleep(100)",
    "ignore signals": "import signal\nfor s in (2, 15, 14, 24): signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
    "print without end": "while True: print('x' * 10000)",
    "take memory": "x = bytearray(4 * 2**30)\nprint('done')",
    "overflow the stack": "import sys\nsys.setrecursionlimit(10**9)\ndef f(): return [f()]\nf()",
    "crash": "import ctypes\nctypes.string_at(0)",
    "close its output": "import os\nos.close(1)\nos.write(1, b'done')",
    "write to the harness": (
        "import os\nfor n in range(3, 50):\n    try: os.write(n, b'done' * 9)\n    except OSError: pass"
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_program_fails_its_test_and_no_other(what):
    require("bwrap")
    program = f"if input() == 'good':\n    print('done')\nelse:\n    exec({HOSTILE[what]!r}, {{}})"
    began = time.monotonic()
    tests = [StdinTest("good", "done"), StdinTest("bad", "done"), StdinTest("good", "done")]
    result = run_python(program, tests, test_timeout_s=1.0)
    assert result.outcomes == (True, False, True), result.reason
    assert time.monotonic() - began < 6


@pytest.mark.parametrize("what", ["fork", "open a socket", "kill its parent", "loop", "take memory"])
def test_every_sandbox_refuses(what, sandbox):
    tests = [StdinTest("good", "done"), StdinTest("bad", "done"), StdinTest("good", "done")]
    program = f"if input() == 'good':\n    print('done')\nelse:\n    exec({HOSTILE[what]!r}, {{}})"
    assert run_python(program, tests, test_timeout_s=1.0, sandbox=sandbox).outcomes == (True, False, True)


@pytest.mark.parametrize("name", ["bwrap", "nsjail"])
def test_nothing_is_visible_but_python_and_nothing_is_writable_but_its_folder(name, tmp_path):
    require(name)
    (tmp_path / "secret").write_text("hidden")
    program = f"""
import os
for path in ("/etc/passwd", "/proc/self/environ", "/sys", "/home", {str(tmp_path / "secret")!r}, {__file__!r}):
    if os.path.exists(path):
        print("sees", path)
for path in ("/x", "/usr/lib/x", os.__file__, "/dev/x", "/etc/x"):
    try:
        open(path, "a")
        print("writes", path)
    except OSError:
        pass
print(sorted(os.environ.keys() - {{"PWD"}}), os.listdir("/tmp"), os.getcwd())
open("/tmp/mine", "w").write("x")
"""
    expected = "['HOME', 'LANG', 'PYTHONHASHSEED'] [] /tmp"
    result = run_python(program, [StdinTest("", expected)], sandbox=name)
    assert result.all_passed, result.reason
    assert not Path("/tmp/mine").exists()


@needs_bwrap
def test_its_folder_has_a_limit():
    program = "for i in range(100):\n    open(f'/tmp/{i}', 'wb').write(bytes(10 * 2**20))\nprint('done')"
    assert "No space left" in run_python(program, [StdinTest("", "done")]).reason


@needs_bwrap
def test_what_a_test_expects_is_nowhere_in_its_process():
    program = """
import gc, sys
names, frame = [], sys._getframe()
while frame:
    names.append(repr(frame.f_locals)); names.append(repr(frame.f_globals)); frame = frame.f_back
names.append(repr(gc.get_objects()))
memory = "".join(names)
def f(x):
    return "needle-" + memory.partition(sys.intern("nee" + "dle-"))[2][:2]
print(f(0))
"""
    assert run_python(program, [StdinTest("", "needle-42"), CallTest("f", [1], "needle-42")]).passed == 0
    found = run_python(program, [CallTest("f", ["needle-42"], "needle-42")])
    assert not found.all_passed  # the arguments come after the program was loaded
    seen = program.replace("print(f(0))", "") + "def g(x):\n    return x"
    assert run_python(seen, [CallTest("g", ["needle-42"], "needle-42")]).all_passed


@needs_bwrap
def test_threads_with_a_large_stack_are_allowed():
    program = """
import sys, threading
sys.setrecursionlimit(10**6)
threading.stack_size(2**28)
def depth(n): return 0 if n == 0 else 1 + depth(n - 1)
thread = threading.Thread(target=lambda: print(depth(20000)))
thread.start()
thread.join()
"""
    assert run_python(program, [StdinTest("", "20000")]).all_passed


def test_the_folder_of_a_bare_process_is_removed(sandbox):
    if sandbox != "rlimits":
        pytest.skip("only a bare process has a folder on the disk")
    before = set(Path(tempfile.gettempdir()).glob("fastgrpo_program_*"))
    program = "import os\nopen('mine', 'w').write('x')\nprint(os.listdir('.'), os.getuid() == 0)"
    assert run_python(program, [StdinTest("", "['mine'] False")], sandbox=sandbox).all_passed
    assert set(Path(tempfile.gettempdir()).glob("fastgrpo_program_*")) == before


@pytest.mark.parametrize("machine", UNISTD)
def test_the_numbers_of_the_refused_calls_are_the_kernels(machine):
    if not UNISTD[machine].exists():
        pytest.skip(f"{UNISTD[machine]} is not installed")
    numbers = dict(re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)\n", UNISTD[machine].read_text()))
    _, clone, clone3, refused = inside.FORBIDDEN[machine]
    assert (clone, clone3) == (int(numbers["clone"]), int(numbers["clone3"]))
    names = {
        *(
            "shmget",
            "socket",
            "fork",
            "vfork",
            "execve",
            "kill",
            "ptrace",
            "rt_sigqueueinfo",
            "mount",
            "tkill",
            "tgkill",
        ),
        *("add_key", "keyctl", "unshare", "rt_tgsigqueueinfo", "perf_event_open", "setns", "process_vm_readv"),
        *("process_vm_writev", "memfd_create", "bpf", "execveat", "userfaultfd", "pidfd_send_signal", "io_uring_setup"),
        *("pidfd_open", "pidfd_getfd"),
    }
    assert set(refused) == {int(numbers[name]) for name in names if name in numbers}


# The process that asks.


@pytest.mark.parametrize("name", ["bwrap", "nsjail"])
def test_nothing_is_left_when_the_asking_process_is_killed(name):
    require(name)
    script = f"""
from fastgrpo.rewards import StdinTest, run_python
run_python("while True: pass", [StdinTest("", "")], test_timeout_s=60, timeout_s=60, sandbox={name!r})
"""
    with subprocess.Popen([sys.executable, "-c", script]) as asking:
        try:
            _until(lambda: len(_descendants(asking.pid)) >= 3)
            left = _descendants(asking.pid)
        finally:
            asking.kill()
    _until(lambda: not any(_is_alive(pid) for pid in left))


def _until(is_over, limit_s: float = 20.0) -> None:
    end = time.monotonic() + limit_s
    while not is_over():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.02)


def _descendants(pid: int) -> set[int]:
    found: set[int] = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            found |= {child, *_descendants(child)}
    return found


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_without_a_sandbox_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxError, match=r"apt install bubblewrap.*sandbox='rlimits'"):
        run_python(ADD, [StdinTest("", "")])


def test_a_sandbox_that_does_not_start_says_why(monkeypatch, tmp_path):
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'bwrap: No permissions to create a new namespace' >&2\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(session, "_started", set())
    with pytest.raises(
        SandboxError, match=r"No permissions to create a new namespace\. It needs bubblewrap 0\.7.*CAP_SYS"
    ):
        run_python(ADD, [StdinTest("", "")])


@needs_bwrap
@pytest.mark.parametrize(("privileges", "words"), [([], "(True,)"), (["-sys_admin"], "not permitted. It needs")])
def test_without_user_namespaces_it_needs_the_capability(privileges, words):
    """As root of a container: one that is made here, whose root has no further user namespaces."""
    program = "from fastgrpo.rewards import *; print(run_python('print(1)', [StdinTest('', '1')]).outcomes)"
    without = f"setpriv --bounding-set {privileges[0]} --inh-caps {privileges[0]}" if privileges else ""
    script = f'echo 0 > /proc/sys/user/max_user_namespaces && exec {without} {sys.executable} -c "{program}"'
    if subprocess.run(["unshare", "--user", "--map-root-user", "true"]).returncode:
        pytest.skip("this user may not make a user namespace to try it in")
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", script], capture_output=True, text=True, timeout=60
    )
    assert words in done.stdout + done.stderr


def test_root_runs_no_bare_program_as_itself(monkeypatch, tmp_path):
    if os.getuid() != 0 or nobody_reads(Path(command.interpreter())):
        pytest.skip("for root, with a Python in its own home")
    monkeypatch.setattr(session, "_started", set())
    with pytest.raises(SandboxError, match="must not run as root"):
        run_python(ADD, [StdinTest("", "")], sandbox="rlimits")


def test_a_killed_sandbox_fails_what_is_left(sandbox, monkeypatch):
    ask, asked = session.Session.ask, []

    def killed_at_the_second(self, test, timeout_s):
        asked.append(test)
        if len(asked) == 2:
            os.killpg(self._process.pid, signal.SIGKILL)
        return ask(self, test, timeout_s)

    monkeypatch.setattr(session.Session, "ask", killed_at_the_second)
    result = run_python(ADD, [StdinTest("1 2", "3")] * 4, sandbox=sandbox)
    assert result.outcomes == (True, False, False, False)
    assert result.reason == "test 2: the program ended its sandbox"
