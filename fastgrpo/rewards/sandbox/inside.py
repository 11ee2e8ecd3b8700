"""What runs in the sandbox: a process that starts one for each test and never runs the program itself.

A bare interpreter gets this file as text, so it imports the standard library alone, and of that only what starts
quickly: `enum`, `json`, `pickle`, `re` and `typing` take longer than the interpreter itself. It reads what marshal
wrote, because it trusts the reward's process; that one trusts nothing here, and gets lengths and bytes.
"""

from __future__ import annotations

import _signal as signal
import ctypes
import marshal
import os
import resource
import struct
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, BinaryIO

READY = b"ready\n"
REPLY = struct.Struct("<iQQQ")
"""How the test's process ended (its exit code, or minus the number of its signal), then the lengths of what it wrote
to its output, to its errors and as its value, which follow."""
TIMED_OUT = -1000

STDIN, STDOUT, STDERR, VALUE = range(4)  # descriptors of a test's process
NOBODY = 65534
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38

FORBIDDEN = {
    "x86_64": (0xC000003E, 56, 435, (29, 41, 57, 58, 59, 62, 101, 129, 165, 200, 234, 248, 250, 272, 297, 298, 308, 310,
                                     311, 319, 321, 322, 323, 424, 425, 434, 438)),
    "aarch64": (0xC00000B7, 220, 435, (40, 97, 117, 129, 130, 131, 138, 194, 198, 217, 219, 221, 240, 241, 268, 270,
                                       271, 279, 280, 281, 282, 424, 425, 434, 438)),
}  # fmt: skip
"""By machine: its audit number, the numbers of clone and clone3, and, each in its order, those of shmget, socket, fork,
vfork, execve, kill, ptrace, rt_sigqueueinfo, mount, tkill, tgkill, add_key, keyctl, unshare, rt_tgsigqueueinfo,
perf_event_open, setns, process_vm_readv, process_vm_writev, memfd_create, bpf, execveat, userfaultfd,
pidfd_send_signal, io_uring_setup, pidfd_open and pidfd_getfd, where it has them. With these a program could start
others, reach the network, end another process or keep memory that no limit counts."""


def main() -> None:
    requests, replies = os.fdopen(os.dup(STDIN), "rb"), os.fdopen(os.dup(STDOUT), "wb")
    setup: dict[str, Any] = marshal.load(requests)
    if setup["drop_root"] and os.getuid() == 0:
        _become_nobody()
    _die_with_parent()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    _send(replies, READY)
    while True:
        try:
            test = marshal.load(requests)
        except EOFError:
            return
        _send(replies, _run(setup, test))


def _send(replies: BinaryIO, data: bytes) -> None:
    replies.write(data)
    replies.flush()


def _become_nobody() -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    os.environ["HOME"] = "/"
    if not os.access(os.__file__, os.R_OK):
        sys.exit(f"the program must not run as root, and no other user may read the Python in {sys.base_prefix}")


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # In a PID namespace the parent is a number that this process cannot know; there the namespace ends with it.


def _run(setup: dict[str, Any], test: tuple[str, Any, bytes, float]) -> bytes:
    """The reply on one test, which a process of its own runs."""
    kind, body, token, timeout_s = test
    files = [os.memfd_create("test") for _ in range(4)]
    if kind == "stdin":
        os.pwrite(files[STDIN], body, 0)
    elif kind != "assert":
        import json  # noqa: F401  # before the fork, once for all tests
    child = os.fork()
    if child == 0:
        _be_the_test(setup, kind, (body, token), timeout_s, files)
    status = _wait(child, timeout_s)
    written = [_content(file, setup["max_bytes"]) for file in files[1:]]
    return REPLY.pack(status, *map(len, written)) + b"".join(written)


def _wait(child: int, timeout_s: float) -> int:
    """How the process ended, or `TIMED_OUT`, and then it is killed."""
    until = time.monotonic() + timeout_s
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        left_s = until - time.monotonic()
        if left_s <= 0:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return TIMED_OUT
        signal.sigtimedwait([signal.SIGCHLD], left_s)


def _content(file: int, max_bytes: int) -> bytes:
    size = os.fstat(file).st_size
    data = os.pread(file, min(size, max_bytes), 0)
    os.close(file)
    return data


def _be_the_test(
    setup: dict[str, Any], kind: str, given: tuple[Any, bytes], timeout_s: float, files: list[int]
) -> None:
    """Runs the test and ends this process: with 0 if the program came to its end."""
    code = 1
    try:
        _die_with_parent()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        for number, file in enumerate(files):
            os.dup2(file, number)
        os.closerange(len(files), 4096)
        sys.stdin, sys.stdout, sys.stderr = (
            open(number, "r" if number == STDIN else "w", encoding="utf-8", closefd=False) for number in range(3)
        )
        sys.argv = ["program.py"]
        sys.set_int_max_str_digits(0)
        _limit(setup, timeout_s)
        _forbid()
        KINDS[kind](setup["program"], *given)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        words = " ".join(str(error).split())
        sys.stderr.write(f"\n{type(error).__name__}: {words}" if words else f"\n{type(error).__name__}")
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:
            code = code or 1
        os._exit(code & 0xFF)


def _limit(setup: dict[str, Any], timeout_s: float) -> None:
    seconds = int(timeout_s) + 2
    limits = {
        resource.RLIMIT_AS: setup["memory_bytes"],
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: setup["max_bytes"],
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    for name, value in limits.items():
        resource.setrlimit(name, (value, value))


def _forbid() -> None:
    """Has the kernel refuse (EPERM) what a computation does not need: other processes, sockets, signals to others.

    Threads stay: clone is allowed with CLONE_THREAD, and glibc falls back to it when clone3 is said not to exist.
    """
    machine = os.uname().machine
    if machine not in FORBIDDEN:
        sys.exit(f"run_python knows the system calls of {', '.join(FORBIDDEN)} and not of {machine}")
    audit, clone, clone3, others = FORBIDDEN[machine]
    load, equal, at_least, any_bit, ret = 0x20, 0x15, 0x35, 0x45, 0x06
    kill, eperm, enosys, allow = 0x80000000, 0x00050001, 0x00050026, 0x7FFF0000
    clone_thread = 0x00010000
    code = [
        (load, 0, 0, 4),  # the machine that the call is of
        (equal, 1, 0, audit),
        (ret, 0, 0, kill),
        (load, 0, 0, 0),  # its number
        (at_least, 0, 1, 0x40000000),  # x32, which has numbers of its own
        (ret, 0, 0, eperm),
        (equal, 0, 1, clone3),
        (ret, 0, 0, enosys),
        (equal, 0, 3, clone),
        (load, 0, 0, 16),  # the low half of its first argument, the flags
        (any_bit, len(others) + 1, 0, clone_thread),  # to the last line but one
        (ret, 0, 0, eperm),
        *((equal, len(others) - i, 0, number) for i, number in enumerate(others)),  # to the last line
        (ret, 0, 0, allow),
        (ret, 0, 0, eperm),
    ]
    packed = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *line) for line in code))
    program = struct.pack("<HxxxxxxQ", len(code), ctypes.addressof(packed))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(PR_SET_SECCOMP, 2, program, 0, 0):
        sys.exit(f"run_python needs seccomp, and this kernel refuses it: {os.strerror(ctypes.get_errno())}")


def _load(program: str, name: str) -> dict[str, Any]:
    """The names that the program defines, as a module that tests may import too."""
    module = type(sys)(name)
    sys.modules[name] = module
    exec(compile(program, "program.py", "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


def _with_stdin(program: str, body: bytes, token: bytes) -> None:
    _load(program, "__main__")


def _call(program: str, body: tuple[str, list[Any]], token: bytes) -> None:
    name, arguments = body
    names = _load(program, "solution")
    function = names[name] if name in names or "Solution" not in names else getattr(names["Solution"](), name)
    _write_value(_json(function(*arguments)))


def _evaluate(program: str, body: str, token: bytes) -> None:
    names = _load(program, "solution")
    _write_value(_json(eval(compile(body, "tests.py", "eval", dont_inherit=True), names)))


def _assert(program: str, body: str, token: bytes) -> None:
    names = _load(program, "solution")
    before = set(names)
    exec(compile(body, "tests.py", "exec", dont_inherit=True), names)
    for name in [n for n in names if n.startswith("test_") and n not in before]:
        names[name]()
    _write_value(token)


def _json(value: Any) -> bytes:
    import json

    return json.dumps(value, default=float).encode()  # float: Fraction and Decimal are numbers too


def _write_value(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(VALUE, view) :]


KINDS: dict[str, Callable[[str, Any, bytes], None]] = {
    "stdin": _with_stdin,
    "call": _call,
    "evaluate": _evaluate,
    "assert": _assert,
}
