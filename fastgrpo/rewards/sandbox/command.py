"""The command that starts a bare interpreter in a sandbox."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from fastgrpo.rewards.judgement import RewardError

SandboxName = Literal["auto", "bwrap", "nsjail", "rlimits"]

TEMPORARY_BYTES = 64 * 2**20
INSIDE = Path(__file__).with_name("inside.py")
SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")  # where a dynamic linker looks
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
ENVIRONMENT = {"PYTHONHASHSEED": "0", "HOME": "/tmp", "LANG": "C.UTF-8"}
"""All that a program sees. The order of sets is the same in every run, or a resumed run would judge otherwise."""


class SandboxError(RewardError):
    """There is no sandbox, or it does not start; the message says what to do."""


NO_SANDBOX = "sandbox='rlimits' does without: read first in its documentation what it does not protect from"


def interpreter() -> str:
    """The Python without an environment's packages, of the version that this process has."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def python_command() -> list[str]:
    # Not -I: it would ignore PYTHONHASHSEED. The environment has nothing else.
    return [interpreter(), "-P", "-s", "-S", "-B", "-X", "utf8", "-c", f"{INSIDE.read_text()}\nmain()"]


def command_of(sandbox: SandboxName) -> tuple[SandboxName, list[str]]:
    """The sandbox that is used and its command. Raises SandboxError if there is none."""
    if sandbox not in ("auto", *COMMANDS, "rlimits"):
        raise ValueError(f"sandbox must be 'auto', 'bwrap', 'nsjail' or 'rlimits', got {sandbox!r}")
    if sys.platform != "linux":
        raise SandboxError("run_python needs Linux, whose kernel keeps a program from the network and from others")
    if sandbox == "rlimits":
        return sandbox, python_command()
    names: list[SandboxName] = list(COMMANDS) if sandbox == "auto" else [sandbox]
    for name in names:
        if path := shutil.which(name):
            return name, [*DIES_WITH_PARENT[name], path, *COMMANDS[name](), *python_command()]
    wanted = "bwrap or nsjail" if sandbox == "auto" else sandbox
    raise SandboxError(
        f"run_python needs {wanted} on the PATH: `apt install bubblewrap`, or `dnf install bubblewrap`. {NO_SANDBOX}"
    )


def bwrap() -> list[str]:
    """Bubblewrap: nothing is there but Python and the libraries that it links, read-only, and an empty /tmp."""
    options = ["--unshare-all", "--die-with-parent", "--cap-drop", "ALL"]
    for path in visible():
        if os.path.islink(path):
            options += ["--symlink", os.readlink(path), path]
        else:
            options += ["--ro-bind", path, path]
    for path in DEVICES:
        options += ["--dev-bind", path, path]
    options += ["--perms", "1777", "--size", str(TEMPORARY_BYTES), "--tmpfs", "/tmp"]
    return [*options, "--remount-ro", "/", "--chdir", "/tmp"]


def visible() -> list[str]:
    """What a program may read: the interpreter, its libraries, the system's."""
    executable = interpreter()
    prefix = Path(executable).parents[1]
    libraries = [str(prefix / name) for name in ("lib", "lib64")]
    paths = dict.fromkeys([*SYSTEM, *libraries, executable])
    return [path for path in paths if os.path.lexists(path)]


def nsjail() -> list[str]:
    """nsjail with the same view, and without limits of its own: `inside.py` sets them for every test."""
    options = [
        "--mode",
        "o",
        "--really_quiet",
        "--disable_rlimits",
        "--disable_proc",
        "--iface_no_lo",
        "--time_limit",
        "0",
    ]
    for path in visible():
        if os.path.islink(path):
            options += ["--symlink", f"{os.readlink(path)}:{path}"]
        else:
            options += ["--bindmount_ro", path]
    for path in DEVICES:
        options += ["--bindmount", path]
    options += ["--mount", f"none:/tmp:tmpfs:size={TEMPORARY_BYTES},mode=1777", "--cwd", "/tmp"]
    for name, value in ENVIRONMENT.items():
        options += ["--env", f"{name}={value}"]
    return [*options, "--"]


DIES_WITH_PARENT = {"bwrap": (), "nsjail": ("setpriv", "--pdeathsig", "KILL")}  # of util-linux; bwrap has an option
COMMANDS: dict[SandboxName, Callable[[], list[str]]] = {"bwrap": bwrap, "nsjail": nsjail}
