"""The sandboxes that this machine has."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from fastgrpo.rewards.sandbox import command


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
    if request.param == "rlimits" and os.getuid() == 0 and not nobody_reads(Path(command.interpreter())):
        if not nobody_reads(PUBLIC_PYTHON):
            pytest.skip("root's programs run as nobody, who can read no Python here")
        monkeypatch.setattr(command, "interpreter", lambda: str(PUBLIC_PYTHON.resolve()))
    return str(request.param)


def nobody_reads(path: Path) -> bool:
    return path.exists() and all(p.stat().st_mode & 0o5 == 5 for p in (path, *path.resolve().parents))
