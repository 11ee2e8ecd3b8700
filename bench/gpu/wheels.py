"""The wheels that a GPU image lacks: fetched where there is a network, and installed where there is none.

A machine without a network often accepts only files up to some size, so a large wheel is cut into pieces.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Sequence
from email.parser import Parser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bench.gpu.processes import CARRIED, ROOT

IMAGE = Path(__file__).with_name("image.txt")
PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")
PIECE_BYTES = 30 * 2**20
FOR_TESTS = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis")


def fetch(folder: Path, extra: Sequence[str], image: Path = IMAGE) -> int:
    """Downloads every wheel that the project needs and the image lacks, and those of ``extra``.

    Returns 1 if one cannot be downloaded, else 0.
    """
    folder.mkdir(parents=True, exist_ok=True)
    there = {canonicalize_name(line) for line in _lines(image)}
    wanted = [r for r in _project_requirements() if canonicalize_name(r.name) not in there]
    wanted += [Requirement(name) for name in extra]
    fetched: dict[str, int] = {}  # name -> bytes
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        if name in fetched:
            continue
        wheel = _download(requirement, folder)
        if wheel is None:
            print(f"bench gpu: no wheel of {requirement} for Python {PYTHON} on Linux can be had", file=sys.stderr)
            return 1
        fetched[name] = wheel.stat().st_size
        print(f"{fetched[name] / 2**20:7.2f} MiB  {wheel.name}")
        wanted += [r for r in _requirements_of(wheel) if canonicalize_name(r.name) not in there]
        _in_pieces(wheel)
    total = sum(fetched.values())
    print(f"{total / 2**20:7.2f} MiB  in {len(fetched)} wheels that the image lacks, in {folder}")
    return 0


def install(folder: Path) -> None:
    """Installs the wheels into a folder of their own, which every step has on its path.

    The machine's packages stay as they are. If it fails, it prints that, and the steps that need the wheels will fail.
    """
    carried = sorted(p.name for p in folder.iterdir())
    stamp = CARRIED / "carried.txt"
    if not carried or (stamp.exists() and stamp.read_text(encoding="utf-8").split("\n") == carried):
        return
    with tempfile.TemporaryDirectory() as joined:
        wheels = _joined(folder, Path(joined))
        if not wheels:
            return
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile"]
        command += ["--no-cache-dir", "--upgrade", "--target", str(CARRIED), *map(str, wheels)]
        try:
            subprocess.run(command, check=True, timeout=120)
        except subprocess.SubprocessError as error:
            print(f"bench gpu: the wheels of {folder} could not be installed: {error}", file=sys.stderr)
            return
    stamp.write_text("\n".join(carried), encoding="utf-8")


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]


def _project_requirements() -> list[Requirement]:
    """What the trainer, the kernels and the tests need, without the kernels themselves, which the checkout has."""
    projects = [
        tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for folder in (".", "kernels")
    ]
    ours = {canonicalize_name(project["name"]) for project in projects}
    needed = [Requirement(text) for project in projects for text in project["dependencies"]]
    return [r for r in (*needed, *map(Requirement, FOR_TESTS)) if canonicalize_name(r.name) not in ours]


def _download(requirement: Requirement, folder: Path) -> Path | None:
    with tempfile.TemporaryDirectory() as downloaded:
        if not _pip_download(requirement, downloaded):
            return None
        for old in folder.glob("*.whl*"):  # an older version or its pieces: pip refuses two versions
            if canonicalize_name(old.name.split("-")[0]) == canonicalize_name(requirement.name):
                old.unlink()
        wheel = next(Path(downloaded).glob("*.whl"))
        return Path(shutil.move(wheel, folder / wheel.name))


def _pip_download(requirement: Requirement, target: str) -> bool:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", target]
    command += ["--python-version", PYTHON, "--implementation", "cp"]
    command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    command += ["-c", str(ROOT / "constraints" / "main.txt"), str(requirement)]
    return subprocess.run(command, check=False).returncode == 0


def _requirements_of(wheel: Path) -> list[Requirement]:
    """The requirements of a wheel that hold on the target, without extras."""
    with zipfile.ZipFile(wheel) as archive:
        inside = next(n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
        metadata = Parser().parsestr(archive.read(inside).decode())
    found = [Requirement(text) for text in metadata.get_all("Requires-Dist") or ()]
    target = {"python_version": PYTHON, "python_full_version": f"{PYTHON}.0", "sys_platform": "linux",
              "platform_system": "Linux", "platform_machine": "x86_64", "extra": ""}  # fmt: skip
    return [r for r in found if r.marker is None or r.marker.evaluate(target)]


def _in_pieces(wheel: Path) -> None:
    """Cuts a wheel above the limit into ``NAME.whl.000``, ``NAME.whl.001`` and so on."""
    if wheel.stat().st_size <= PIECE_BYTES:
        return
    with wheel.open("rb") as file:
        for number, piece in enumerate(iter(lambda: file.read(PIECE_BYTES), b"")):
            wheel.with_name(f"{wheel.name}.{number:03}").write_bytes(piece)
    wheel.unlink()


def _joined(folder: Path, target: Path) -> list[Path]:
    """The paths of all wheels of the folder; those that were in pieces are joined in ``target``."""
    whole = sorted(folder.glob("*.whl"))
    for first in sorted(folder.glob("*.whl.000")):
        wheel = target / first.name.removesuffix(".000")
        with wheel.open("wb") as file:
            for piece in sorted(folder.glob(f"{wheel.name}.[0-9][0-9][0-9]")):
                with piece.open("rb") as part:
                    shutil.copyfileobj(part, file)
        whole.append(wheel)
    return whole
