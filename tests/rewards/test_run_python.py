"""Programs against tests: what passes, and what a hostile program can do, which is nothing."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from functools import cache
from pathlib import Path

import pytest

from fastgrpo.rewards import (
    MADE_UP,
    AssertTest,
    CallTest,
    Item,
    SandboxError,
    StdinTest,
    ValueTest,
    VerifierPool,
    last_code_block,
    run_python,
)
from fastgrpo.rewards import tests_of as read_tests
from fastgrpo.rewards.sandbox import command, inside, session


@cache
def unusable(name: str) -> str:
    """Why this machine has no such sandbox; empty if it has."""
    if not shutil.which(name):
        return f"{name} is not installed" + (": apt install bubblewrap" if name == "bwrap" else "")
    options = ["--unshare-all", "--ro-bind", "/", "/"] if name == "bwrap" else ["-Mo", "-R", "/", "--"]
    tried = subprocess.run([name, *options, "/bin/true"], capture_output=True, text=True)
    return f"{name} does not start here: {tried.stderr.strip()[-200:]}" if tried.returncode else ""


def require(name: str) -> None:
    if reason := unusable(name):
        pytest.skip(reason)


needs_bwrap = pytest.mark.skipif(bool(unusable("bwrap")), reason=unusable("bwrap") or "it is there")
ADD = "a, b = map(int, input().split())\nprint(a + b)"
PUBLIC_PYTHON = Path("/usr/bin/python3")
UNISTD = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


@pytest.fixture(params=["bwrap", "nsjail", "rlimits"])
def sandbox(request, monkeypatch) -> str:
    """Every sandbox that this machine has."""
    if request.param != "rlimits":
        require(request.param)
    if request.param == "rlimits" and os.getuid() == 0 and not _nobody_reads(Path(command.interpreter())):
        if not _nobody_reads(PUBLIC_PYTHON):
            pytest.skip("root's programs run as nobody, who can read no Python here")
        monkeypatch.setattr(command, "interpreter", lambda: str(PUBLIC_PYTHON.resolve()))
    return str(request.param)


def _nobody_reads(path: Path) -> bool:
    return path.exists() and all(p.stat().st_mode & 0o5 == 5 for p in (path, *path.resolve().parents))


# What passes.


@needs_bwrap
def test_outcomes_are_in_the_order_of_the_tests_with_the_first_failures_reason():
    result = run_python(
        ADD, [StdinTest("1 2", "3"), StdinTest("1 2", "4"), StdinTest("x", "5"), StdinTest("5 5", "10")]
    )
    assert result.outcomes == (True, False, False, True)
    assert (result.passed, result.total, result.share, result.all_passed) == (2, 4, 0.5, False)
    assert result.reason == "test 2: needed the output '4', got '3\\n'"


@needs_bwrap
def test_the_reason_has_the_last_line_of_the_traceback():
    assert run_python("1/0", [StdinTest("", "")]).reason == "test 1: exit code 1: ZeroDivisionError: division by zero"
    assert "SyntaxError" in run_python("def", [StdinTest("", "")]).reason
    assert run_python("assert False", [StdinTest("", "")]).reason == "test 1: exit code 1: AssertionError"
    assert run_python(None, [StdinTest("", "")]).reason == "there is no program"


@needs_bwrap
def test_with_stop_at_failure_later_tests_are_not_run():
    program = "import time\nt = float(input())\ntime.sleep(t)\nprint(t)"
    tests = [StdinTest("0", "0.0"), StdinTest("0", "1"), *[StdinTest("3", "3.0")] * 3]
    began = time.monotonic()
    assert run_python(program, tests, stop_at_failure=True).outcomes == (True, False, False, False, False)
    assert time.monotonic() - began < 3


@needs_bwrap
def test_tests_beyond_the_programs_time_fail_without_being_run():
    program = "import time\ntime.sleep(0.4)\nprint(1)"
    result = run_python(program, [StdinTest("", "1")] * 50, timeout_s=1.0)
    assert result.outcomes[0] and 1 <= result.passed <= 2 and result.total == 50


@needs_bwrap
@pytest.mark.parametrize(
    ("printed", "expected", "tolerance", "passes"),
    [
        ("a  \nb\t\n\n\n", "a\nb", 0, True),
        ("a\r\nb", "a\nb\n", 0, True),
        (" a", "a", 0, False),
        ("a\n\nb", "a\nb", 0, False),
        ("0.30000000000000004", "0.3", 0, False),
        ("0.30000000000000004 x", "0.3  x", 1e-9, True),
        ("1000001", "1000000", 1e-5, True),
        ("nan", "0.3", 1e-9, False),
        ("7", "inf", 1e-9, False),
        ("Infinity", "inf", 1e-9, True),
        ("1 2", "1", 1e-9, False),
        ("ä€😀", "ä€😀", 0, True),
    ],
)
def test_outputs_are_compared_but_for_whitespace_at_line_ends(printed, expected, tolerance, passes):
    test = StdinTest("", expected)
    assert run_python(f"print({printed!r}, end='')", [test], float_tolerance=tolerance).all_passed is passes


@needs_bwrap
def test_values_are_compared_as_json_has_them():
    program = "from fractions import Fraction\nclass Solution:\n    def f(self, x): return eval(x)"
    values = {
        "(1, [2, (3,)])": ([1, [2, [3]]], True),
        "{1: 'a'}": ({"1": "a"}, True),
        "10**5000": (10**5000, True),
        "10**5000 + 1": (10**5000, False),
        "Fraction(1, 4)": (0.25, True),
        "None": (None, True),
        "{1, 2}": ([1, 2], False),
        "'\\ud800'": ("\ud800", True),
        "1e400": (float("inf"), True),
        "0.1 + 0.2": (0.3, False),
    }
    tests = [CallTest("f", [given], expected) for given, (expected, _) in values.items()]
    assert run_python(program, tests).outcomes == tuple(right for _, right in values.values())
    near = [CallTest("f", ["[0.1 + 0.2, {'a': 1}]"], [0.3, {"a": 1.0}]), CallTest("f", ["[0.4]"], [0.3])]
    assert run_python(program, near, float_tolerance=1e-9).outcomes == (True, False)
    far = [CallTest("f", ["10**400"], 0.3), CallTest("f", ["1"], 10**400), CallTest("f", ["1"], float("inf"))]
    assert run_python(program, far, float_tolerance=1e-9).outcomes == (False, False, False)


@needs_bwrap
def test_an_expected_value_that_json_has_not_is_refused():
    with pytest.raises(ValueError, match="must be one that JSON has"):
        run_python("def f(): return 1", [CallTest("f", [], Fraction(1, 2))])
    with pytest.raises(ValueError, match="arguments must be numbers, texts"):
        run_python("def f(x): return 1", [CallTest("f", [Fraction(1, 2)], 1)])


@needs_bwrap
def test_assertions_and_test_functions_decide_by_their_end():
    program = "def f(x):\n    return x + 1\ndef test_of_the_program():\n    raise SystemExit"
    texts = [
        "assert f(1) == 2",
        "assert f(1) == 3",
        "assert f(1) == 2 and f(2) == 3",
        "assert f(1) in (3, 4)",
        "import solution\ndef test_it():\n    assert solution.f(0) == 1",
        "def test_it():\n    assert f(0) == 0",
    ]
    assert run_python(program, read_tests(texts)).outcomes == (True, False, True, False, True, False)


@needs_bwrap
@pytest.mark.parametrize("program", ["import os\nos._exit(0)", "import sys\nsys.exit()", "raise SystemExit(0)"])
def test_a_program_that_ends_before_its_tests_passes_none(program):
    tests = [AssertTest("assert True"), ValueTest("1", 1), CallTest("f", [], None), StdinTest("", "x")]
    assert run_python(program, tests).passed == 0


@needs_bwrap
def test_every_test_begins_anew():
    program = (
        "import os, random\nprint(os.path.exists('/tmp/x'), len(random.__dict__.get('mine', [])))\nrandom.mine = [1]"
    )
    assert run_python(program, [StdinTest("", "False 0")] * 2).all_passed
    assert run_python("print(hash('a'))", [StdinTest("", "x")]).reason == (
        run_python("print(hash('a'))", [StdinTest("", "x")]).reason
    ), "the order of sets is the same in every run"


# Tests as data sets have them.


def test_public_schemas_are_read():
    stdin = {"inputs": ["1\n", ["a", "b"]], "outputs": ["2\n", ["c", "d"]]}
    assert read_tests(stdin) == read_tests(json.dumps(stdin)) == [StdinTest("1\n", "2\n"), StdinTest("a\nb", "c\nd")]
    calls = {"fn_name": "f", "inputs": [[1, [2]]], "outputs": [[3]]}
    assert read_tests(calls) == [CallTest("f", [1, [2]], [3], may_be_wrapped=True)]
    lines = {"fn_name": "f", "inputs": ["1\n[2]"], "outputs": ["[3]"]}
    assert read_tests(json.dumps(lines)) == read_tests(calls)
    entries = [
        {"input": "1", "output": "2", "testtype": "stdin"},
        {"input": "[1]", "output": "true", "metadata": '{"func_name": "g"}'},
    ]
    assert read_tests(entries) == [StdinTest("1", "2"), CallTest("g", [[1]], True, may_be_wrapped=True)]
    assert read_tests(["assert f(1) == [2]", "assert f(1) == {2}"]) == [
        ValueTest("f(1)", [2]),
        AssertTest("assert f(1) == {2}"),
    ]
    long = f'{{"fn_name": "f", "inputs": [[1]], "outputs": [{"9" * 5000}]}}'
    assert read_tests(long) == [CallTest("f", [1], 10**5000 - 1, may_be_wrapped=True)]
    assert sys.get_int_max_str_digits() == 4300


@needs_bwrap
def test_a_value_in_a_list_of_one_is_right_as_apps_writes_it():
    tests = read_tests({"fn_name": "f", "inputs": [[1], [2], [3]], "outputs": [[2], 3, [[4]]]})
    assert run_python("def f(x): return x + 1", tests).outcomes == (True, True, False)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "an empty text"),
        ("[]", "at least one test"),
        ({"inputs": [], "outputs": []}, "at least one test"),
        ({"inputs": ["1"], "outputs": []}, "as many inputs as outputs"),
        ({"inputs": "1", "outputs": "1"}, "as many inputs as outputs"),
        ({"input": "1"}, "needed tests as"),
        (3, "needed tests as"),
    ],
)
def test_other_tests_are_refused_in_words(value, words):
    with pytest.raises(ValueError, match=words):
        read_tests(value)


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("```python\na\n```\ntext\n```python\nb\n\n  c\n```", "b\n\n  c"),
        ("```py\na\n```\n```\nb\n```", "a"),
        ("```python\na\n```\nthen\n```python\nb", "a"),
        ("  ```Python3\n  x\n  ```", "  x"),
        ("no block", None),
        ("```python\ncut off", None),
        ("```python\n```", ""),
    ],
)
def test_the_last_complete_python_block_is_the_program(response, program):
    assert last_code_block(response) == program


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


REWARD = """
from fastgrpo.rewards import last_code_block, run_python, tests_of

def reward(response, answer):
    return run_python(last_code_block(response), tests_of(answer), timeout_s=60, test_timeout_s=60).all_passed
"""


@needs_bwrap
def test_it_is_a_reward_in_the_pool_whose_limits_hold_for_it_too(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(REWARD)
    tests = json.dumps({"inputs": ["1 2"], "outputs": ["3"]})
    right, wrong, endless = (f"So:\n```python\n{code}\n```" for code in (ADD, "print(4)", "while True: pass"))
    with VerifierPool(
        f"{path}:reward", 1, timeout_s=2.0, memory_limit_gib=1.5, self_test=[(right, tests, True)]
    ) as pool:
        verdicts = pool.score([(text, tests) for text in (wrong, endless, right)])
        assert [(v.correct, v.failure) for v in verdicts] == [(False, ""), (False, "timeout"), (True, "")]


@needs_bwrap
def test_the_documented_reward_gives_the_share_of_hidden_tests(tmp_path):
    pages = "".join(page.read_text() for page in (Path(__file__).parents[2] / "docs").glob("rewards*.md"))
    (example,) = [code for code in re.findall(r"```python\n(.*?)```", pages, re.DOTALL) if "run_python(last" in code]
    path = tmp_path / "recipe.py"
    path.write_text(example)
    row = {"tests": json.dumps({"inputs": ["1 2", "2 2"], "outputs": ["3", "4"]})}
    texts = [f"```python\n{code}\n```" for code in (ADD, "print(3)", "print(1)")]
    with VerifierPool(f"{path}:reward", 1, timeout_s=20.0, memory_limit_gib=2.0, self_test=[]) as pool:
        verdicts = pool.score([Item(text, "", {"row": row}) for text in texts])
    assert [v.score for v in verdicts] == [1.0, 0.5, 0.0]


@needs_bwrap
def test_the_trial_of_a_reward_runs_a_program(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(REWARD.replace("(response, answer)", "(response, answer, row)").replace("(answer)", "(row)"))
    names = {**MADE_UP.named, "row": {"inputs": [""], "outputs": ["42"]}}
    with VerifierPool(f"{path}:reward", 1, 20.0, 2.0, example=MADE_UP._replace(named=names)):
        pass
    path.write_text(path.read_text().replace(".all_passed", ".all_passed or 1 / 0"))
    with VerifierPool(f"{path}:reward", 1, 20.0, 2.0, example=MADE_UP._replace(named=names)) as pool:
        assert pool.score([MADE_UP._replace(named=names)])[0].correct is True
    names["row"] = {"inputs": [""], "outputs": ["41"]}
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        VerifierPool(f"{path}:reward", 1, 20.0, 2.0, example=MADE_UP._replace(named=names))


def test_a_sandbox_that_does_not_start_refuses_the_reward(monkeypatch, tmp_path):
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'bwrap: No permissions to create a new namespace' >&2\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "recipe.py").write_text(
        REWARD.replace("tests_of(answer)", "tests_of({'inputs': [''], 'outputs': ['']})")
    )
    with pytest.raises(RuntimeError, match=r"called once.*the sandbox bwrap did not start: .*No permissions"):
        VerifierPool(f"{tmp_path / 'recipe.py'}:reward", 1, 20.0, 2.0)


@needs_bwrap
def test_more_memory_than_the_reward_has_is_refused(monkeypatch):
    monkeypatch.setattr(session.resource, "getrlimit", lambda _: (2**30, 2**30))
    with pytest.raises(ValueError, match=r"at most what the reward's own process has, 1 GiB .*memory_limit_gib.*got 2"):
        run_python(ADD, [StdinTest("", "")], memory_gib=2.0)


@pytest.mark.parametrize(
    "change",
    [{"timeout_s": 0}, {"test_timeout_s": -1}, {"memory_gib": 0}, {"float_tolerance": -1}, {"sandbox": "chroot"}],
)
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match=r"must be .*got"):
        run_python(ADD, [StdinTest("", "")], **change)
    with pytest.raises(ValueError, match="at least one test"):
        run_python(ADD, [])


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
    if os.getuid() != 0 or _nobody_reads(Path(command.interpreter())):
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
